"""An authorization server: django-oauth-toolkit, with a database in memory. `python django_issuer.py CLIENT…` prints its port."""

import json
import sys
from contextlib import closing
from socketserver import ThreadingMixIn
from threading import Lock
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="unused",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            # One database for all threads.
            "NAME": "file:issuer?mode=memory&cache=shared",
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    MIDDLEWARE=[],
    USE_TZ=True,
    # Client secrets are hashed like passwords, which takes a second per call by default.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    OAUTH2_PROVIDER={"SCOPES": {"read:reports": "Read", "introspection": "Introspect"}},
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import include, path  # noqa: E402
from oauth2_provider.models import Application  # noqa: E402

urlpatterns = [path("o/", include("oauth2_provider.urls", namespace="oauth2_provider"))]

call_command("migrate", verbosity=0)
for client in sys.argv[1:]:
    Application.objects.create(
        name=client,
        client_id=client,
        client_secret="s:3 cret",
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_CLIENT_CREDENTIALS,
    )


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


# A client may open a connection that it does not use.
class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


application = get_wsgi_application()
lock = Lock()


# Calls at the same time would fail with "table is locked": SQLite does not wait for a database in memory.
def one_call_at_a_time(environ, start_response):
    with lock, closing(application(environ, start_response)) as response:
        return [b"".join(response)]


server = make_server("127.0.0.1", 0, one_call_at_a_time, Server, Quiet)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()

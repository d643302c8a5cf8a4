"""Tests an application against `orgkey emulator`. Run: python3 -m unittest test_app"""

import json
import os
import subprocess
import unittest
import urllib.error
import urllib.parse
import urllib.request


class App:
    """The application under test. It knows the issuer only by its settings."""

    def __init__(self, issuer_url, client_id, client_secret):
        self.issuer_url = issuer_url
        self.credentials = {"client_id": client_id, "client_secret": client_secret}

    def organization_of(self, key):
        """Returns the organization of a valid key, or None. Raises if the issuer cannot tell."""
        form = {
            "grant_type": "client_credentials",
            "audience": f"{self.issuer_url}/api",
            **self.credentials,
        }
        form = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{self.issuer_url}/oauth2/token", form, timeout=5) as reply:
            token = json.load(reply)["access_token"]
        request = urllib.request.Request(
            f"{self.issuer_url}/api/v1/api_keys/verify",
            json.dumps({"api_key": key}).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as reply:
            answer = json.load(reply)
        is_valid = answer["is_valid"] is True and answer["status"] == "active"
        return answer["org_code"] if is_valid else None


class AppTest(unittest.TestCase):
    def setUp(self):
        command = [os.environ.get("ORGKEY", "orgkey"), "emulator", "--listen", "127.0.0.1:0", "--json"]
        self.emulator = subprocess.Popen(command, stdout=subprocess.PIPE)
        # The line is printed when the emulator serves.
        self.settings = json.loads(self.emulator.stdout.readline())
        self.app = App(*(self.settings[name] for name in ("issuer_url", "client_id", "client_secret")))

    def tearDown(self):
        self.emulator.terminate()
        self.assertEqual(self.emulator.wait(timeout=10), 0)
        self.emulator.stdout.close()

    def control(self, path, **body):
        request = urllib.request.Request(
            self.settings["control_url"] + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.load(reply)

    def calls(self):
        with urllib.request.urlopen(self.settings["control_url"] + "/calls", timeout=5) as reply:
            return json.load(reply)

    def test_keys_that_were_printed(self):
        active, revoked = self.settings["keys"]
        self.assertEqual(self.app.organization_of(active["key"]), "org_1")
        self.assertIsNone(self.app.organization_of(revoked["key"]))

    def test_revoked_key(self):
        issued = self.control("/keys", org_code="org_2", scopes=["read:reports"])
        self.assertEqual(self.app.organization_of(issued["key"]), "org_2")
        self.control("/keys/revoke", key_id=issued["key_id"])
        self.assertIsNone(self.app.organization_of(issued["key"]))

    def test_rotated_key(self):
        issued = self.control("/keys", org_code="org_2")
        rotated = self.control("/keys/rotate", key=issued["key"])
        self.assertIsNone(self.app.organization_of(issued["key"]))
        self.assertEqual(self.app.organization_of(rotated["key"]), "org_2")

    def test_issuer_fails(self):
        self.control("/faults", at="verify", fault={"status": 503}, times=1)
        key = self.settings["keys"][0]["key"]
        with self.assertRaises(urllib.error.HTTPError) as raised:
            self.app.organization_of(key)
        self.assertEqual(raised.exception.code, 503)
        raised.exception.close()
        # A test that injects a fault should check that it was used.
        self.assertEqual(self.calls()["verify"]["faulted"], 1)
        self.assertEqual(self.app.organization_of(key), "org_1")

    def test_application_without_scopes(self):
        self.control("/application", scopes=[])
        with self.assertRaises(urllib.error.HTTPError) as raised:
            self.app.organization_of(self.settings["keys"][0]["key"])
        self.assertEqual(raised.exception.code, 401)
        raised.exception.close()

    def test_clock_is_moved(self):
        moved = self.control("/clock", advance_s=3600)
        self.assertEqual(moved["clock_offset_s"], 3600)


if __name__ == "__main__":
    unittest.main()

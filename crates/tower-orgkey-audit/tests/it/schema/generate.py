"""Writes the JSON Schemas that the audit tests hold every event to.

    pip install --no-deps --target /tmp/ocsf ocsf-json-schema==1.2.0
    PYTHONPATH=/tmp/ocsf python3 tests/audit/schema/generate.py
"""

import json
from pathlib import Path

from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

VERSION = "1.8.0"
PROFILES = ["security_control"]
# The last one is spelt like this in the schema.
CLASSES = {"api_activity": 6003, "authentication": 3002, "event_log_actvity": 1008}

schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=VERSION))
for name, uid in CLASSES.items():
    text = json.dumps(
        schema.get_class_schema(name, PROFILES), sort_keys=True, separators=(",", ":")
    )
    (Path(__file__).parent / f"{uid}.json").write_text(text + "\n")

"""Reads a CSV file, and prints its rows as JSON. Usage: table.py FILE"""

import csv
import json
import sys

with open(sys.argv[1], newline="", encoding="utf-8") as file:
    print(json.dumps(list(csv.DictReader(file, strict=True))))

"""Parses a page as a browser does, and prints what it holds. Usage: status_page.py FILE"""

import base64
import hashlib
import html.parser
import json
import pathlib
import sys

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Collects elements, texts and attributes, and elements that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.misplaced = []
        self.elements = {}
        self.cells = []
        self.styles = []
        self.attributes = set()
        self.refresh = None

    def handle_starttag(self, tag, attrs):
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes.update(name for name, _ in attrs)
        if ("http-equiv", "refresh") in attrs:
            self.refresh = dict(attrs)["content"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif self.open and self.open[-1] == "td":
            self.cells.append(data)


page = Page()
page.feed(pathlib.Path(sys.argv[1]).read_text())
page.close()
hashes = [hashlib.sha256(style.encode()).digest() for style in page.styles]
print(
    json.dumps(
        {
            "unclosed": page.open,
            "misplaced": page.misplaced,
            "elements": page.elements,
            "attributes": sorted(page.attributes),
            "cells": page.cells,
            "styles": [base64.b64encode(digest).decode() for digest in hashes],
            "refresh": page.refresh,
        }
    )
)

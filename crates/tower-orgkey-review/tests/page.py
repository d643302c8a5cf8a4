"""Parses a page as a browser does, and prints what it holds. Usage: page.py FILE"""

import html.parser
import json
import pathlib
import sys

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and texts, and elements that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.misplaced = []
        self.elements = set()
        self.attributes = set()
        self.text = []
        self.style = []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data):
        is_style = self.open and self.open[-1] == "style"
        (self.style if is_style else self.text).append(data)


page = Page()
page.feed(pathlib.Path(sys.argv[1]).read_text())
page.close()
print(
    json.dumps(
        {
            "unclosed": page.open,
            "misplaced": page.misplaced,
            "elements": sorted(page.elements),
            "attributes": sorted(page.attributes),
            "text": "".join(page.text),
            "style": "".join(page.style),
        }
    )
)

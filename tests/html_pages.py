"""What holds for every HTML page that is written here, read as a machine reads it."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Reads a page as a machine does: every tag is closed, and what is told by tags is kept."""

    VOID = frozenset(("meta", "img", "br", "hr", "input", "link"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], text
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, tag

    def all(self, *names):
        return [attributes for tag, attributes, _ in self.tags if tag in names]


def check(text: str) -> Reader:
    """What holds for every page that is written here."""
    assert not re.search(r"(src=|href=|url\(|@import )[\"']?(https?:|//|file:)", text) and not re.search(r"<script|<link|<iframe|@import", text)
    seen = Reader(text)
    headings = [int(tag[1]) for tag, _, _ in seen.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1 and all(after - before <= 1 for before, after in itertools.pairwise(headings)), headings
    assert all(picture.get("alt", "").strip() and picture["src"].startswith("data:image/") and picture["width"] for picture in seen.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in seen.all("th"))
    assert all("aria-label" in drawing or "aria-hidden" in drawing for tag, drawing, inside in seen.tags if tag == "svg" and "svg" not in inside)
    regions = [attributes for attributes in seen.all("div") if attributes.get("class") == "scroll"]
    assert all(region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"] for region in regions)  # scrolled by keyboard
    assert all("scroll" in str([a for t, a, _ in seen.tags if t == "div"]) for _ in seen.all("table"))
    ids = [attributes["id"] for _, attributes, _ in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and all(link["href"][1:] in ids for link in seen.all("a"))
    assert seen.all("html")[0]["lang"] == "en" and "width=device-width" in text
    return seen

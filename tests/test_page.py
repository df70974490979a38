"""Reports as pages: what a reader sees is what was given, whatever it holds."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from undiffuse.evaluation.page import Page, write_page
from undiffuse.plots import save_image

NASTY = """<script>alert("1")</script> & 'it' {{ 7 * 7 }} </pre> &lt; ü"""


class Reader(HTMLParser):
    """The tags of a page, and the text within each kind of them, as a browser has them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.tags and data.strip():
            self.texts[self.tags[-1]][-1] += data


def test_every_text_is_shown_as_it_is(tmp_path: Path) -> None:
    """Names of models, data and files come from anywhere: none of them is HTML or a template."""
    save_image(np.zeros((4, 4, 1), np.uint8), tmp_path / "a.png", 1)
    page = Page(
        NASTY, NASTY, [NASTY], [NASTY], [[NASTY, ""], ["", NASTY]], [NASTY], [(tmp_path / "a.png", NASTY)], {"a": NASTY}
    )
    write_page(page, tmp_path / "page.html")
    found = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in found.tags
    for tag in ("title", "h1", "th", "figcaption"):
        assert found.texts[tag] == [NASTY], tag
    assert found.texts["p"] == [NASTY, NASTY]
    assert found.texts["td"] == [NASTY, "", "", NASTY]
    assert json.loads(found.texts["pre"][0]) == {"a": NASTY}
    (image,) = (found.attributes[k] for k, tag in enumerate(found.tags) if tag == "img")
    assert (image["src"] or "").startswith("data:image/png;base64,") and set(image) == {"src"}


def test_a_figure_without_a_caption_has_none(tmp_path: Path) -> None:
    """And a page without figures or notes is whole."""
    write_page(Page("t", "h", [], ["a"], [], [], [], None), tmp_path / "page.html")
    found = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found.texts["h1"] == ["h"] and "img" not in found.tags and found.texts["pre"] == ["null"]

"""A report as one HTML file with its figures embedded: to keep, to send or to put beside a paper."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from undiffuse.files import atomic_file

_TEMPLATES = Environment(
    loader=PackageLoader("undiffuse.evaluation"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Page:
    """What a report shows, from top to bottom. Texts are plain: the template escapes them.

    Attributes:
        title: the title of the window.
        summary: lines above the table.
        notes: lines below it.
        figures: PNG files, each with its caption or "".
        conditions: shown as JSON at the end.
    """

    title: str
    heading: str
    summary: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    figures: Sequence[tuple[Path, str]]
    conditions: Any


def write_page(page: Page, path: Path) -> None:
    """Writes the page (templates/page.html.j2), atomically."""
    text = _TEMPLATES.get_template("page.html.j2").render(
        page=page,
        figures=[(_inline(file), caption) for file, caption in page.figures],
        conditions=json.dumps(page.conditions, indent=1),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _inline(file: Path) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()

"""Runs the Python of tutorial.md from top to bottom and keeps the pictures it draws in figures/tutorial.

make tutorial
"""

import contextlib
import hashlib
import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "tutorial.md"
FIGURES = DOCS / "figures" / "tutorial"


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the number of lines before it."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def digest(page: Path) -> str:
    """Of all that a page's pictures depend on: says whether they are those of today's code blocks."""
    return hashlib.sha256("".join(code for _, code in blocks(page)).encode()).hexdigest()


def run(page: Path, folder: Path) -> None:
    """Runs the blocks in order, in one namespace, with `folder` as the working directory."""
    namespace: dict[str, object] = {"__name__": "tutorial"}
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        for before, code in blocks(page):
            exec(compile("\n" * before + code, str(page), "exec"), namespace)  # a traceback names the page's own line


if __name__ == "__main__":
    run(PAGE, FIGURES)
    (FIGURES / "made-from.sha256").write_text(digest(PAGE) + "\n", encoding="utf-8")

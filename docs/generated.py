"""What the site has beyond the Markdown files, which read well by themselves: conf.py lets Sphinx call these.

A comment `<!-- commands -->`, `<!-- settings -->` or `<!-- api: package.module -->` is replaced by what the code says,
the lists of links in index.md become the site's table of contents, and links to files of the repository lead there.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/undiffuse/undiffuse/"
DOCS = Path(__file__).parent


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Sphinx's "source-read": replaces a page's text by what the site shows."""
    text = source[0]
    if page == "index":
        text += contents(text)
    text = text.replace("<!-- commands -->", commands()) if "<!-- commands -->" in text else text
    text = text.replace("<!-- settings -->", settings()) if "<!-- settings -->" in text else text
    text = re.sub(r"<!-- api: ([\w.]+) -->", api, text)
    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)", lambda link: f"]({on_the_web(page, link[1])}", text)


def contents(index: str) -> str:
    """A hidden table of contents for each section of the index: its links to pages, in their order."""
    trees = ""
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        pages = dict.fromkeys(re.findall(r"^- .*?\]\(([\w/-]+)\.md\)", body, re.MULTILINE))
        if pages:
            trees += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"
    return trees


def on_the_web(page: str, link: str) -> str:
    """A relative link that leaves docs/, as an address; a link within is left as it is."""
    target = Path(os.path.normpath(DOCS / Path(page).parent / link))
    if target.is_relative_to(DOCS) or not target.exists():  # Sphinx warns of one that leads nowhere
        return link
    return f"{REPOSITORY}{'tree' if target.is_dir() else 'blob'}/main/{target.relative_to(DOCS.parent).as_posix()}"


def leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every subcommand, with what is written between `undiffuse` and its arguments."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{word} ")
        else:
            yield before + word, command


def commands() -> str:
    """The --help of every command."""
    import typer

    from undiffuse.cli.app import app

    group = typer.main.get_command(app)
    context = group.context_class(group, info_name="undiffuse", terminal_width=100, **group.context_settings)
    parts = []
    for name, command in leaves(group):
        help_text = command.get_help(command.context_class(command, parent=context, info_name=name))
        parts.append(f"## undiffuse {name}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting: name, default, meaning and type."""
    from undiffuse.config import keys, written

    parts, section = [], ""
    for name, kind, default, description in keys():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            parts.append(f"\n## {section}\n\n| setting | default | | type |\n|---|---|---|---|")
        cells = f"`{name}`", f"`{written(default) or '(empty)'}`", description, f"`{kind}`"
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def api(marker: re.Match[str]) -> str:
    """What the public names of a module are for, from their docstrings."""
    return f"```{{eval-rst}}\n.. automodule:: {marker[1]}\n   :members:\n   :show-inheritance:\n```"


def as_restructured_text(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's "autodoc-process-docstring": indented lines are code, and outside `code` no character is markup."""
    result: list[str] = [""] if what == "property" else []  # else Napoleon takes what is before a colon for its type
    google = False
    for number, line in enumerate(lines):
        begins_block = line.startswith("    ") and number and not lines[number - 1].strip()
        if re.match(r"(Args|Attributes|Returns|Raises|Yields):$", line):
            google = True
        elif line and not line.startswith(" "):
            google = False
        if begins_block and not google and not _in_block(result):
            result += ["::", ""]
        literal = line.startswith("    ") and not google
        result.append(line if literal else _escaped(line))
    lines[:] = result


def _in_block(before: list[str]) -> bool:
    """Whether the lines so far end inside an indented block."""
    last = next((line for line in reversed(before) if line.strip()), "")
    return last.startswith("    ")


def _escaped(line: str) -> str:
    """A line with *, | and trailing _ as they are, but for those in `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(p if p.startswith("`") else re.sub(r"([*|]|_(?!\w))", r"\\\1", p) for p in parts)


def inline_math(writer: Any, node: Any) -> None:
    """TeX within a line as MathML."""
    _math(writer, node, block=False)


def block_math(writer: Any, node: Any) -> None:
    """TeX on lines of its own as MathML."""
    _math(writer, node, block=True)


def _math(writer: Any, node: Any, block: bool) -> None:
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml

    writer.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode

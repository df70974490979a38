"""The documentation: its code runs; its commands, settings, names and links exist; what is generated is complete."""

import ast
import dataclasses
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import undiffuse
from undiffuse.cli.app import app
from undiffuse.config import keys, make_config, parse_settings, presets
from undiffuse.model import DataFacts
from undiffuse.process import GaussianProcess
from undiffuse.sampling import GRIDS, SAMPLERS

sys.path.append(str(Path(__file__).parents[1] / "docs"))

import generated
import make_tutorial

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "src/undiffuse/models/README.md"]
PAGES += [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
COMMANDS = dict(generated.leaves(typer.main.get_command(app)))
LINK = re.compile(r"\]\(([^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every undiffuse command on a page: those of code blocks, and of code within a line."""
    blocks = re.findall(r"^( *)```(?:sh)?\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for _, block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`((?:undiffuse|torchrun) [^`]*)`", prose(page))
    for line in lines:
        if found := re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:torchrun .*-m )?undiffuse (.*)", line):
            yield shlex.split(found[1], comments=True)


def test_the_tutorial_runs_and_draws_its_pictures(tmp_path: Path) -> None:
    """Every block, in order, with what it asserts; the pictures it writes are those that the page shows."""
    with torch.random.fork_rng(devices=[]):
        make_tutorial.run(make_tutorial.PAGE, tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    shown = re.findall(r"\]\(figures/tutorial/([\w.-]+)\)", make_tutorial.PAGE.read_text())
    assert len(written) > 10 and written == set(shown) and len(shown) == len(written)
    for name in written:
        with Image.open(tmp_path / name) as new, Image.open(make_tutorial.FIGURES / name) as committed:
            assert len(np.unique(np.asarray(new.convert("L")))) > 20
            assert np.allclose(new.size, committed.size, rtol=0.1)


def test_the_tutorials_pictures_are_those_of_its_code() -> None:
    """Whoever changes the code draws them again."""
    recorded = (make_tutorial.FIGURES / "made-from.sha256").read_text().strip()
    assert recorded == make_tutorial.digest(make_tutorial.PAGE), "docs/tutorial.md has changed: run make tutorial"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links, on GitHub: the file is there, and so is the heading."""
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_python_of_the_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block imports from the package is there; and it runs, unless it would train for minutes."""
    if page == make_tutorial.PAGE or page.name.startswith("extending"):  # which other tests run
        return
    monkeypatch.chdir(tmp_path)
    for before, code in make_tutorial.blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("undiffuse"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), code
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "undiffuse":
                assert hasattr(undiffuse, node.attr), code
        if "undiffuse.train(" not in code:
            namespace: dict[str, Any] = {"network": lambda x, log_snr, condition: torch.zeros_like(x)}
            exec(compile("\n" * before + code, str(page), "exec"), namespace)


@each_page
def test_commands_of_the_pages(page: Path) -> None:
    """Subcommands, options, settings, presets, samplers and grids are ones that there are."""
    for setting in re.findall(r"--set[ =]([\w.]+=[^\s`]+)", page.read_text(encoding="utf-8")):
        assert setting in ("KEY=VALUE", "section.key=value") or parse_settings([setting])
    for words in commands(page):
        if words[0] in ("COMMAND", "--version"):
            continue
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        assert name in COMMANDS, words
        known = {option for parameter in COMMANDS[name].params for option in getattr(parameter, "opts", [])}
        for word, value in zip(words, [*words[1:], ""], strict=True):
            option, _, given = word.partition("=")
            value = given or value
            if not re.match(r"--?[a-z]", option):
                continue
            assert option in known | {"--help", "-h", "--debug"}, words
            choices = {"--preset": presets(), "--sampler": ["auto", *SAMPLERS], "--grid": GRIDS}
            assert option not in choices or value in choices[option], words


def test_generated_pages_are_complete() -> None:
    """Every command with each of its options, and every setting."""
    written = generated.commands()
    for name, command in COMMANDS.items():
        text = written.split(f"## undiffuse {name}\n")[1].split("\n## ")[0]
        assert f"Usage: undiffuse {name}" in text and "Example" in text
        for parameter in command.params:
            options = [option for option in getattr(parameter, "opts", []) if option.startswith("-")]
            assert all(option in text for option in options), parameter.name
    for name, *_ in keys():
        assert f"| `{name}` |" in generated.settings()


def test_the_index_has_every_page() -> None:
    """Each page is in the table of contents that the site takes from the lists of the index, once."""
    trees = generated.contents((DOCS / "index.md").read_text())
    listed = re.findall(r"^[\w/-]+$", trees, re.MULTILINE)
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert sorted(listed) == sorted(pages - {"index"})


def test_links_out_of_the_docs_become_addresses() -> None:
    """Files and folders of the repository; what is within docs, or nowhere, stays a link for Sphinx to check."""
    assert generated.on_the_web("design", "../README.md").endswith("/blob/main/README.md")
    assert generated.on_the_web("reference/api", "../../src/undiffuse").endswith("/tree/main/src/undiffuse")
    for page, link in (("howto/gpu", "../data.md"), ("design", "../nowhere.py")):
        assert generated.on_the_web(page, link) == link


def test_docstrings_become_text() -> None:
    """Nothing in a docstring is taken for markup but `code`, and indented lines are code."""
    lines = ["q(x_t | x_0), *and* x_ but `a * b_`:", "", "    x = y | z_", "", "Args:", "    a: b *c*"]
    generated.as_restructured_text(None, "function", "f", None, None, lines)
    assert lines == [r"q(x_t \| x_0), \*and\* x\_ but `a * b_`:", "", "::", "", "    x = y | z_", "", "Args:",
                     r"    a: b \*c\*"]  # fmt: skip


def glossary() -> list[str]:
    """The code in the last column of the glossary."""
    rows = re.findall(r"^\|.*\|(.*)\|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("name", glossary())
def test_what_the_glossary_names_exists(name: str) -> None:
    """Options, settings, samplers, files, and the public names of modules and classes."""
    first, _, last = name.partition(".")
    if name.startswith("--"):
        option = name.split()[0]
        assert any(option in getattr(parameter, "opts", []) for c in COMMANDS.values() for parameter in c.params)
    elif name.endswith(".py"):
        assert (ROOT / "src/undiffuse" / name).exists()
    elif "=" in name:
        make_config(parse_settings([name]))
    elif name not in SAMPLERS and name not in [key for key, *_ in keys()]:
        homes = [importlib.import_module(f"undiffuse.{module}") for module in ("process", "denoiser")]
        owners = [getattr(home, first) for home in homes if hasattr(home, first)]
        if importlib.util.find_spec(f"undiffuse.{first}"):
            owners.append(importlib.import_module(f"undiffuse.{first}"))
        if first == "process":
            owners.append(GaussianProcess)
        assert owners and (not last or any(hasattr(owner, last) for owner in owners))


def test_the_model_folder_page_names_the_fields_of_the_card() -> None:
    """All facts about the data that a model keeps."""
    text = (DOCS / "reference/model-folder.md").read_text()
    assert set(re.findall(r"`data\.(\w+)`", text)) == {field.name for field in dataclasses.fields(DataFacts)}


def test_the_readme_is_short() -> None:
    """Under 120 lines: the rest is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 120

"""The commands for a model of texts."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli.console import alone, check_options, given, numbers, say, table
from undiffuse.cli.recorded import recorded
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.data.tokens import Tokenizer
    from undiffuse.model import Model
    from undiffuse.writing import Writing

LONGEST, MOST_STEPS, MOST_TEXTS = 100_000, 10_000, 1_000_000
SAMPLE = ("model", "n", "sampler", "steps", "grid", "prompt", "length", "seed", "out", "device", "force")
EDIT = ("model", "images", "infill", "strength", "n", "sampler", "steps", "grid", "seed", "out", "device", "force")
EVALUATE = ("subject", "metrics", "n", "draws", "sampler", "steps", "seed", "json_file", "device", "force")
EXPLAIN = ("model", "out", "seed", "force")


def is_text(model: str) -> bool:
    """Whether this is a model of texts."""
    from undiffuse.card import find, read_card

    try:
        return read_card(find(model)).data.domain == "texts"
    except UndiffuseError:  # files with samples, or what the command refuses by itself
        return False


def sample(
    context: typer.Context, model: str, prompts: Sequence[str], length: int | None, out: Path | None, force: bool
) -> None:
    """`undiffuse sample` of a model of texts; the rest of its options are in the context."""
    alone("sample")
    check_options(context, SAMPLE, "models of texts")
    if len(prompts) > 1:
        raise UsageError("a text begins with one --prompt")
    _claim(out, force)

    from undiffuse.data.bpe import begun
    from undiffuse.writing import write

    loaded, tokenizer, writing = _loaded(context, model)
    _warn_of_unknown(tokenizer, "".join(prompts))
    prompt, next_ones = begun(tokenizer, "".join(prompts))
    length = length or max(loaded.data.shape[0], len(prompt) + loaded.data.shape[0] // 2)
    if length > LONGEST:
        raise UsageError(f"--length {length}: a text has at most {LONGEST:,} tokens here")
    if len(prompt) >= length:
        raise UsageError(f"--length {length}: the prompt alone has {len(prompt)} tokens")
    origin = recorded(context, loaded, writing.seed)
    count = context.params["n"] or 1
    with bar("writing", _batches(count) * (length - len(prompt))) as tick:
        found = _in_batches(
            count, lambda part: write(loaded, writing, part, prompt, length, loaded.condition(part), next_ones, tick)
        )
    _tell(tokenizer, found, out, force, origin.text())


def edit(
    context: typer.Context, model: str, texts: Sequence[Path], infill: str | None, out: Path | None, force: bool
) -> None:
    """`undiffuse edit` of a model of texts: fills in blanks, or rewrites a file at a strength."""
    check_options(context, EDIT, "models of texts")
    _claim(out, force)
    if (infill is None) == (not texts):
        raise UsageError('give one file to rewrite, or --infill "The ____ of the ____"')
    if len(texts) > 1:
        raise UsageError("one text at a time")

    from undiffuse import writing as ways
    from undiffuse.data.textfiles import text_source

    source = infill if infill is not None else "\n".join(text_source(str(texts[0])).open().documents)
    if not source.strip():
        raise UsageError("there is no text to edit" if infill is None else "--infill is empty")
    loaded, tokenizer, writing = _loaded(context, model)
    _warn_of_unknown(tokenizer, source)
    if infill is not None:
        tokens, free, allowed = _blanks(tokenizer, source)
    else:
        tokens, free = tokenizer.encode(source), None
    strength = context.params["strength"]
    if infill is not None and strength is not None:
        raise UsageError("--strength is for a text to rewrite, and --infill has blanks instead")
    strength = 0.6 if strength is None else strength
    if not 0 < strength <= 1:
        raise UsageError(f"--strength {strength:g} must lie above 0 and at most at 1")
    origin = recorded(context, loaded, writing.seed, texts)
    count, work = context.params["n"], len(tokens) if free is None else int(free.sum())

    def edited(part: range) -> "np.ndarray":
        condition = loaded.condition(part)
        if free is None:
            return ways.rewrite(loaded, writing, part, tokens, strength, condition, tick)
        return ways.infill(loaded, writing, part, tokens, free, condition, allowed, tick)

    with bar("writing", _batches(count) * work) as tick:
        found = _in_batches(count, edited)
    _tell(tokenizer, found, out, force, origin.text())


def explain(context: typer.Context, model: str, out: Path, seed: int, force: bool) -> None:
    """`undiffuse explain` of a model of texts."""
    check_options(context, EXPLAIN, "models of texts")
    import numpy as np

    from undiffuse.cli.explain import put_pictures
    from undiffuse.evaluation.texts import learnt_text
    from undiffuse.explain_texts import draw, work
    from undiffuse.model import load
    from undiffuse.writing import Writing, write

    loaded = load(model)
    if loaded.config.network.span:
        raise UsageError(f"{model} writes in order; explain follows models that write in any")
    try:
        text = learnt_text(loaded, "test").images[0]
    except UndiffuseError as error:  # what it learnt from is not here: the noise takes a text of its own away
        say(f"{error}: the text in the first picture is one that {model} writes")
        text = write(
            loaded, Writing(seed=seed), [0], np.zeros(0, np.int64), loaded.data.shape[0], loaded.condition([0])
        )[0]
    origin = recorded(context, loaded, seed)
    with bar("drawing", work(loaded)) as tick:
        put_pictures(out, lambda folder: draw(loaded, folder, text, seed, tick), origin, force)


def evaluate(context: typer.Context, model: str, json_file: Path | None, force: bool) -> None:
    """`undiffuse evaluate` of a model of texts."""
    alone("evaluate")
    check_options(context, EVALUATE, "models of texts")
    from undiffuse import output
    from undiffuse.devices import conditions
    from undiffuse.evaluation.texts import DRAWS, measured
    from undiffuse.files import write_json
    from undiffuse.model import load
    from undiffuse.names import one_of
    from undiffuse.registry import TEXT_METRICS
    from undiffuse.writing import Writing

    options = context.params
    asked = [name.strip() for name in options["metrics"].split(",")]
    asked = list(TEXT_METRICS) if asked == ["all"] else asked
    for name in asked:
        one_of("metric of texts", name, TEXT_METRICS)
    steps = None
    if "steps" in given(context):
        steps, *others = numbers("--steps", options["steps"])
        if others:
            raise UsageError(f"--steps {options['steps']}: one number for a model of texts")
    writing = Writing(options["sampler"], steps, seed=options["seed"])
    loaded = load(model, options["device"])
    rows, facts = measured(
        loaded, asked, n=options["n"] or 64, draws=options["draws"] or DRAWS, writing=writing, bar=bar
    )
    cells = [["measure", "value", "standard error", "beside", ""]]
    for row in rows:
        error, beside = ("" if value is None else f"{value:.4g}" for value in (row.error, row.beside))
        cells.append([row.measure, f"{row.value:.4g}", error, beside, row.what])
    say(table(cells))
    if json_file:
        found = {"model": model, **facts, **conditions(), "rows": [dataclasses.asdict(row) for row in rows]}
        say(f"{output.put(json_file, lambda path: write_json(path, found), force)}: all numbers")


def _batches(count: int) -> int:
    from undiffuse.writing import BATCH

    return -(-count // BATCH)


def _in_batches(count: int, written: "Callable[[range], np.ndarray]") -> "np.ndarray":
    """The texts 0 .. count - 1, some at a time: each depends on its number alone."""
    import numpy as np

    from undiffuse.writing import BATCH

    return np.concatenate([written(range(n, min(n + BATCH, count))) for n in range(0, count, BATCH)])


def _loaded(context: typer.Context, name: str) -> "tuple[Model, Tokenizer, Writing]":
    """The model, its tokenizer and the recipe."""
    from undiffuse.model import load
    from undiffuse.writing import Writing, texts_only

    options = context.params
    steps = options["steps"] if "steps" in given(context) else None
    for name_of, value, most in (("--steps", steps, MOST_STEPS), ("-n", options["n"], MOST_TEXTS)):
        if value is not None and value > most:
            raise UsageError(f"{name_of} {value}: at most {most:,}")
    writing = Writing(options["sampler"], steps, options["grid"], options["seed"])
    loaded = load(name, options["device"])
    return loaded, texts_only(loaded), writing


def _warn_of_unknown(tokenizer: "Tokenizer", text: str) -> None:
    """Warns of characters that become U+FFFD; where none stands for them, encoding refuses them."""
    from undiffuse.data.tokens import UNKNOWN, Characters
    from undiffuse.names import listed

    if isinstance(tokenizer, Characters) and UNKNOWN in tokenizer.alphabet and (unknown := tokenizer.lacks(text)):
        warnings.warn(f"the model has never seen {listed(map(repr, unknown))}: each becomes {UNKNOWN}", stacklevel=3)


def _blanks(tokenizer: "Tokenizer", text: str) -> "tuple[np.ndarray, np.ndarray, np.ndarray | None]":
    """The tokens (L,) of a text, 0 in its blanks; where these are, bool (L,); what may stand where, bool (L, K), or
    None: anything.

    Raises UsageError for a text without blanks.
    """
    import re

    import numpy as np

    from undiffuse.data.bpe import begun
    from undiffuse.writing import BLANK

    kept_or_blank = re.findall(rf"((?:\\{BLANK}|[^{BLANK}])*)({BLANK}*)", text)
    if not any(blank for _, blank in kept_or_blank):
        raise UsageError(
            f"--infill: mark what is to be written with {BLANK}, one for each token (and write \\{BLANK} for one)"
        )
    tokens, free, opened = np.zeros(0, np.int64), np.zeros(0, bool), {}
    for escaped, blank in kept_or_blank:
        kept = escaped.replace(f"\\{BLANK}", BLANK)
        ids, spaced = begun(tokenizer, kept) if blank else (tokenizer.encode(kept).astype(np.int64), None)
        tokens = np.concatenate([tokens, ids, np.zeros(len(blank), np.int64)])
        if spaced is not None:
            opened[len(free) + len(ids)] = spaced
        free = np.concatenate([free, np.zeros(len(ids), bool), np.ones(len(blank), bool)])
    if not opened:
        return tokens, free, None
    allowed = np.ones((len(tokens), tokenizer.size), bool)
    for place, spaced in opened.items():
        allowed[place] = spaced
    return tokens, free, allowed


def _claim(out: Path | None, force: bool) -> None:
    from undiffuse import output

    output.claim({"--out": out}, force, {"--out": (".txt", ".json")})


def _tell(tokenizer: "Tokenizer", found: "np.ndarray", out: Path | None, force: bool, origin: str) -> None:
    """Prints texts, or writes them: a .json carries the recipe too."""
    import json

    from undiffuse import output
    from undiffuse.data.remarks import readable
    from undiffuse.writing import BETWEEN

    texts = [tokenizer.decode(row) for row in found]
    if out is None:
        say(BETWEEN.join("\n".join(map(readable, text.split("\n"))) for text in texts))
        return
    whole = BETWEEN.join(texts) + "\n"
    if out.suffix.lower() == ".json":
        whole = json.dumps({"undiffuse": json.loads(origin), "texts": texts}, ensure_ascii=False)
    place = output.put(out, lambda path: path.write_text(whole, "utf-8"), force)
    say(f"{len(texts)} {'text' if len(texts) == 1 else 'texts'}: {place}")

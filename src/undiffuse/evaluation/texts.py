"""Measures of a model of texts on text that it has not seen: bits per character, infilling, fluency of its samples."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from undiffuse.build import make_data
from undiffuse.data.texts import TextSet
from undiffuse.errors import UsageError
from undiffuse.evaluation.infilling import KINDS, SPAN, infilled, masks
from undiffuse.evaluation.language import (
    BLOCK,
    GRAMS,
    Estimate,
    bound_bits,
    causal_bits,
    chain_rule_bits,
    chosen,
    fluency,
)
from undiffuse.metrics.language import Bidirectional, NGram, highest_order
from undiffuse.model import Model
from undiffuse.objectives import count, next_token, spans
from undiffuse.objectives.bound import continuous_bound
from undiffuse.progress import Bar, no_bar
from undiffuse.registry import TEXT_METRICS
from undiffuse.writing import Writing, process_of, texts_only, write

DRAWS = 8
BLOCKS = 20
WINDOWS = 400
ORDER = 5
NAMES = {"characters": "single tokens", "spans": f"spans of {SPAN} tokens"}


@dataclass(frozen=True)
class Row:
    """One figure, with its standard error if it has one; `beside` is what it is to be compared with, and says what."""

    measure: str
    value: float
    error: float | None = None
    beside: float | None = None
    what: str = ""


def measured(
    model: Model,
    metrics: Sequence[str] = TEXT_METRICS,
    *,
    n: int = 64,
    draws: int = DRAWS,
    blocks: int | None = BLOCKS,
    writing: Writing | None = None,
    bar: Bar = no_bar,
) -> tuple[list[Row], dict[str, Any]]:
    """The figures of each of `metrics`, names in TEXT_METRICS, and their conditions.

    Args:
        n: samples, for fluency.
        draws: estimates of the bound for each window of the held-out text; every character is in one window.
        blocks: of 1,000 tokens, evenly spaced, for the chain rule; None: all.
        writing: how the samples are written.

    Raises UsageError for a model that is not of texts, or was trained on another text than is there now.
    """
    train, test = (learnt_text(model, split) for split in ("train", "test"))
    writing, window = writing or Writing(), model.data.shape[0]
    whole, infills = set(metrics) == set(TEXT_METRICS), _infills(model)
    if "infill" in metrics and not whole and not (infills and window >= 2 * SPAN):
        raise UsageError(f"infilling is measured where any tokens are masked, and in windows of {2 * SPAN} or more")
    n = min(n, len(train.flat) // 2 // window)
    if "fluency" in metrics and not n:
        raise UsageError(f"half of the training text, {len(train.flat) // 2} tokens, is shorter than a window")
    rows: list[Row] = []
    if "bpd" in metrics:
        rows += _bits(model, test, draws, blocks, writing.seed, bar)
    if "infill" in metrics and infills and window >= 2 * SPAN:
        rows += _infilling(model, train, test, writing.seed, bar)
    if "fluency" in metrics:
        rows += _fluency(model, train, n, writing, bar)
    facts = {
        "model_fingerprint": model.fingerprint,
        "data": {"name": test.name, "test": test.fingerprint, "characters": test.characters},
        "draws": draws,
        "blocks": blocks,
        "samples": n,
        "writing": dataclasses.asdict(writing),
    }
    return rows, facts


def log_probs(model: Model, x: Tensor) -> Tensor:
    """ln p of every token at the masks of x, or for a model trained to the next token at every place given those
    before it: (B, L, K)."""
    return model.denoiser.logits(x, 0.5, model.unconditional(len(x))).log_softmax(-1)  # type: ignore[attr-defined]


def _infills(model: Model) -> bool:
    """Whether it can be asked for single tokens: with any of them masked, or with all that comes before them."""
    return process_of(model).mask is not None and model.config.objective.loss != "spans"


def learnt_text(model: Model, split: str) -> TextSet:
    """A split of the text that a model was trained on. Raises UsageError if it is not there any more."""
    texts_only(model)
    if model.learnt is None:
        raise UsageError(f"{model.name} was imported without data")
    train = make_data(model.learnt, "train")
    if not model.has_learnt(train.fingerprint):
        raise UsageError(f"{train.name} is not the text that {model.name} was trained on any more")
    text = train if split == "train" else make_data(model.learnt, split)
    assert isinstance(text, TextSet)
    return text


def _bits(model: Model, test: TextSet, draws: int, blocks: int | None, seed: int, bar: Bar) -> list[Row]:
    window, loss = model.data.shape[0], model.config.objective.loss
    shared: dict[str, Any] = {"characters": test.characters / len(test.flat), "device": model.device, "progress": bar}
    flat, span = np.asarray(test.flat, dtype=np.int64), model.config.network.span
    law, absorbing = partial(log_probs, model), process_of(model).mask is not None

    def bound(objective: Any, draws: int) -> Estimate:
        return bound_bits(objective, model.denoiser, flat, window, draws, seed, **shared)

    if loss == "next-token":
        return [
            _row("bits per character, windows apart", bound(next_token, 1)),
            _row("bits per character, left to right", causal_bits(law, flat, window, **shared)),
        ]
    if span:
        return [_row(f"bits per character, windows apart, in spans of {span}", bound(partial(spans, span=span), draws))]
    rows = [_row("bits per character, windows apart, bound", bound(count if absorbing else continuous_bound, draws))]
    if absorbing:
        shared["characters"] = _characters(test, flat, blocks)
        left = chain_rule_bits(law, flat, window, process_of(model).values, blocks=blocks, **shared)
        rows.append(_row("bits per character, left to right", left))
    return rows


def _characters(test: TextSet, flat: np.ndarray, blocks: int | None) -> float:
    """The characters per token of the blocks that the chain rule reads."""
    numbers = chosen(len(flat), blocks)
    parts = np.split(numbers, range(BLOCK, len(numbers), BLOCK))
    return sum(len(test.tokenizer.decode(flat[part])) for part in parts) / len(numbers)


def _infilling(model: Model, train: TextSet, test: TextSet, seed: int, bar: Bar) -> list[Row]:
    process = process_of(model)
    windows = np.asarray(test.images[:: max(1, len(test.images) // WINDOWS)], dtype=np.int64)
    order = highest_order(process.values, ORDER)
    rival = Bidirectional.learnt(np.asarray(train.flat), process.values, order)
    looks_back = model.config.network.span == 1
    mask, note = (None, ", told all before") if looks_back else (process.values, "")
    rows = []
    for kind in KINDS:
        shared: dict[str, Any] = {"windows": windows, "hidden": masks(kind, len(windows), windows.shape[1], seed)}
        ours = infilled(lambda x, _: log_probs(model, x), mask=mask, device=model.device, progress=bar, **shared)
        theirs = infilled(lambda x, away: rival.log_probs(x.numpy(), away.numpy()), mask=process.values, **shared)
        for what, of_ours, of_theirs in (
            ("right", ours.accuracy, theirs.accuracy),
            ("bits per token", ours.bits, theirs.bits),
        ):
            row = _row(f"infilling {NAMES[kind]}{note}, {what}", of_ours)
            rows.append(dataclasses.replace(row, beside=of_theirs.value, what=f"a {order}-gram model of both sides"))
    return rows


def _fluency(model: Model, train: TextSet, n: int, writing: Writing, bar: Bar) -> list[Row]:
    window, half = model.data.shape[0], len(train.flat) // 2
    values = process_of(model).values
    order, grams = highest_order(values, ORDER), highest_order(values, GRAMS)
    judge = NGram.learnt(np.asarray(train.flat[:half]), order, values)
    samples = []
    with bar("writing", n) as tick:
        for first in range(0, n, 16):
            numbers = range(first, min(first + 16, n))
            nothing = np.zeros(0, np.int64)
            samples.append(write(model, writing, numbers, nothing, window, model.condition(numbers)))
            tick(len(numbers))
    found = fluency(np.concatenate(samples), judge, np.asarray(train.flat[half:], dtype=np.int64))
    real = "real text"
    return [
        Row(f"samples under a {order}-gram model, bits per token", found.bits, None, found.real_bits, real),
        Row("entropy of tokens in samples, bits", found.unigrams, None, found.real_unigrams, real),
        Row(f"entropy of {grams}-grams in samples, bits", found.fourgrams, None, found.real_fourgrams, real),
    ]


def _row(measure: str, estimate: Estimate) -> Row:
    return Row(measure, estimate.value, estimate.error)

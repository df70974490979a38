"""Fine-tuning to captions, from captions and to other captions: the start is the base's unconditional answer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from undiffuse.bases import base_config
from undiffuse.build import make_network
from undiffuse.config import make_config
from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.model import Model, load
from undiffuse.networks.sentence import SentenceEncoder
from undiffuse.registry import CONDITIONS
from undiffuse.training import train
from undiffuse.training.settings import decided
from undiffuse.training.statistics import data_facts
from undiffuse.training.transfer import transfer

PICTURES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
CLASSES: dict[str, Any] = {"labels": np.arange(24) % 2, "classes": ("dark", "bright")}
WORDS: dict[str, Any] = {"captions": tuple([("red hair and a hat", "a hat"), ("red hair",)] * 12)}
OTHERS: dict[str, Any] = {"captions": tuple([("red zebra", "a hat")] * 24)}
KINDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "classes": CLASSES,
    "captions": WORDS,
    "other captions": OTHERS,
    "classes and captions": {**CLASSES, **WORDS},
}


def made(kind: str) -> ImageSet:
    plain = ImageSet("made", "train", PICTURES, None, (), (), "", kind)
    return dataclasses.replace(plain, **KINDS[kind])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run for each kind, its weights perturbed so that nothing in them is zero."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    settings = {**TINY, "training.steps": 3, "training.learning_rate": 0.03, "network.attention": (1,)}
    for kind in KINDS:
        if kind != "other captions":
            out = folder / kind.replace(" ", "-")
            train(settings, out, data=made(kind), report=lambda line: None)
            found[kind] = str(out)
    return found


def started(base: str, kind: str) -> tuple[torch.nn.Module, Model, Any]:
    values = {"training.base": base}
    data = made(kind)
    config = decided(make_config(values, base_config(values)), data, "fp32")
    facts, model = data_facts(config, data), load(base, "cpu")
    network = make_network(config, 3, facts.takes)
    transfer(network, model, facts)
    return network.eval(), model, facts.takes


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", [kind for kind in KINDS if kind != "other captions"])
def test_the_start_is_the_unconditional_answer(before: str, after: str, bases: dict[str, str]) -> None:
    network, base, takes = started(bases[before], after)
    x, log_snr = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, -2.0])
    condition = None
    if takes is not None:
        condition = CONDITIONS.find(takes.kind).for_samples(takes.facts, np.arange(2)).dropped()
    with torch.no_grad():
        ours, theirs = network(x, log_snr, condition), base.network(x, log_snr, base.unconditional(2))
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)  # folding a term into a bias rounds otherwise


def test_words_that_both_know_keep_their_vectors(bases: dict[str, str]) -> None:
    network, base, _ = started(bases["captions"], "other captions")
    found = []
    for one in (network, base.network):
        (encoder,) = (part for part in one.modules() if isinstance(part, SentenceEncoder))
        rows = encoder.embedding.state_dict()["weight"]
        found.append(dict(zip(encoder.text.vocabulary, rows[2:], strict=True)))  # type: ignore[attr-defined]
    ours, theirs = found
    assert {"red", "a", "hat", "zebra"} <= ours.keys() and "zebra" not in theirs
    for word in ("red", "a", "hat"):
        assert torch.equal(ours[word], theirs[word])


def test_another_reader_of_captions_is_refused(bases: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"network\.text"):
        train(
            {"training.base": bases["captions"], "network.text": "minilm", "training.steps": 1},
            tmp_path / "run",
            data=made("captions"),
            report=lambda line: None,
        )

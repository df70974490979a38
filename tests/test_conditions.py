"""A condition from outside of the package goes all the way: batches, training, checkpoint, folder, samples."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from undiffuse.build import default_network, make_network
from undiffuse.card import ConditionFacts, DataFacts, label_facts
from undiffuse.conditions import Condition, Encoders, Labels, label_encoder
from undiffuse.conditions.condition import Rows
from undiffuse.config import Config, make_config
from undiffuse.data import ImageSet
from undiffuse.engines import Compiled, with_engine
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe, generate, states
from undiffuse.interop.onnx import write_onnx
from undiffuse.model import load, write_model
from undiffuse.networks import MLP
from undiffuse.networks.embedding import Conditioning
from undiffuse.randomness import Purpose, stream
from undiffuse.registry import CONDITIONS
from undiffuse.training import checkpoint
from undiffuse.training.batches import make_batch
from undiffuse.training.checkpoint import Learner, Position
from undiffuse.training.ema import EMA
from undiffuse.training.loop import training_steps
from undiffuse.training.muon import make_optimizer

# The example of docs/extending.md.


@dataclass(frozen=True)
class Vectors:
    """Some measured quantities of each of B samples: float32 (B, D), and which rows are known, bool (B,)."""

    values: Tensor
    known: Tensor
    kind: ClassVar[str] = "vectors"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Rows) -> "Vectors":
        return Vectors(self.values[rows], self.known[rows])

    def joined(self, *others: "Vectors") -> "Vectors":
        both = (self, *others)
        return Vectors(torch.cat([one.values for one in both]), torch.cat([one.known for one in both]))

    def to(self, device: torch.device | str) -> "Vectors":
        return Vectors(self.values.to(device), self.known.to(device))

    def dropped(self, where: Tensor | None = None) -> "Vectors":
        known = torch.zeros_like(self.known) if where is None else self.known & ~where.to(self.known.device)
        return Vectors(self.values, known)

    def facts(self) -> dict[str, Any]:
        return {"mean": self.values.mean(0).tolist(), "std": self.values.std(0).tolist()}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        return {"vector": partial(VectorEncoder, len(facts["mean"]))}

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Vectors":
        mean, std = torch.tensor(facts["mean"]), torch.tensor(facts["std"])
        noise = np.stack([stream(int(number), Purpose.CHOICE).standard_normal(len(mean)) for number in numbers])
        return cls(mean + std * torch.from_numpy(noise).float(), torch.ones(len(numbers), dtype=torch.bool))


class VectorEncoder(nn.Module):
    """A linear layer; nothing where a row is not known."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.layer = nn.Linear(inputs, width)

    def forward(self, condition: Vectors) -> Tensor:
        return self.layer(condition.values) * condition.known[:, None]


# End of the example. Two at once: each part has its encoder.


@dataclass(frozen=True)
class Pair:
    """Labels and vectors of the same samples."""

    labels: Labels
    vectors: Vectors
    kind: ClassVar[str] = "pair"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Rows) -> "Pair":
        return Pair(self.labels[rows], self.vectors[rows])

    def joined(self, *others: "Pair") -> "Pair":
        labels, vectors = [one.labels for one in others], [one.vectors for one in others]
        return Pair(self.labels.joined(*labels), self.vectors.joined(*vectors))

    def to(self, device: torch.device | str) -> "Pair":
        return Pair(self.labels.to(device), self.vectors.to(device))

    def dropped(self, where: Tensor | None = None) -> "Pair":
        return Pair(self.labels.dropped(where), self.vectors.dropped(where))

    def facts(self) -> dict[str, Any]:
        return {"labels": self.labels.facts(), "vectors": self.vectors.facts()}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        return {"both": partial(PairEncoder, facts)}

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Pair":
        return cls(Labels.for_samples(facts["labels"], numbers), Vectors.for_samples(facts["vectors"], numbers))


class PairEncoder(nn.Module):
    """The sum of what the parts' encoders say."""

    def __init__(self, facts: dict[str, Any], width: int):
        super().__init__()
        self.label = Labels.encoders(facts["labels"])["label"](width)
        self.vector = Vectors.encoders(facts["vectors"])["vector"](width)

    def forward(self, condition: Pair) -> Tensor:
        return self.label(condition.labels) + self.vector(condition.vectors)


@dataclass(frozen=True)
class Measured(ImageSet):
    """Images and what is known of them besides."""

    known: Any = None

    @property
    def condition(self) -> Any:  # type: ignore[override]
        return self.known


KINDS = {"vectors": Vectors, "pair": Pair}


@pytest.fixture(autouse=True)
def _known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `CONDITIONS.add("vectors", "my.module:Vectors")` does, undone after each test."""
    here = {kind: f"{__name__}:{kind.capitalize()}" for kind in KINDS}
    monkeypatch.setattr(CONDITIONS, "_entries", dict(CONDITIONS))
    for kind, place in here.items():
        CONDITIONS.add(kind, place)


def data_of(kind: str, count: int = 24) -> Measured:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    vectors = Vectors(torch.from_numpy(rng.normal(2, 3, (count, 5))).float(), torch.ones(count, dtype=torch.bool))
    known = {"vectors": vectors, "pair": Pair(Labels(torch.arange(count) % 3, 3), vectors)}[kind]
    return Measured("made", "train", images, None, (), (), "", "", 0, known=known)


def config_of(**settings: Any) -> Config:
    values = {"training.batch_size": 8, "training.label_dropout": 0.4, "denoiser.sigma_data": 0.5}
    values |= {
        "network.channels": (16,),
        "network.patch": 2,
        "network.blocks": 1,
        "training.learning_rate": 0.01,
        "training.warmup": 0,
    }
    config = make_config(values | {key.replace("__", "."): value for key, value in settings.items()})
    return config.model_copy(update={"network": default_network(config.network, (8, 8))})


def facts_of(data: Measured) -> DataFacts:
    condition = data.condition
    return DataFacts("made", (8, 8, 1), len(data), condition=ConditionFacts(condition.kind, condition.facts()))


def learner_of(config: Config, facts: DataFacts) -> Learner:
    torch.manual_seed(1)
    network = make_network(config, 1, facts.takes)
    average = EMA(list(network.parameters()), 0.1)
    return Learner(network, average, make_optimizer(config.training, network), None, Position())


def tensors_of(condition: Any) -> Iterator[Tensor]:
    """All that it holds."""
    for field in dataclasses.fields(condition):
        value = getattr(condition, field.name)
        if isinstance(value, Tensor):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from tensors_of(value)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


EACH: dict[str, Condition] = {
    "labels": Labels(torch.tensor([2, 0, 3, 1, 1]), 3),
    **{kind: data_of(kind).condition[:5] for kind in KINDS},
}


@pytest.mark.parametrize("condition", EACH.values(), ids=EACH)
def test_a_condition_is_rows(condition: Condition) -> None:
    """Indexing, dropping and moving go row by row, and change nothing that was there."""
    before = [tensor.clone() for tensor in tensors_of(condition)]
    where, order = torch.tensor([True, False, False, True, False]), torch.tensor([4, 0, 0, 2])
    some = condition.dropped(where)
    assert len(condition) == 5 and len(condition[1:3]) == 2 and len(condition[order]) == 4
    assert same(some[~where], condition[~where]) and same(some[where], condition.dropped()[where])
    assert same(condition[order].dropped(where[order]), some[order]) and same(some[order.numpy()], some[order])
    assert same(some.dropped(~where), condition.dropped()) and not same(some, condition)
    assert same(condition.to(torch.device("cpu")), condition)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(condition), strict=True))


def test_labels_say_what_they_cannot_be() -> None:
    for index, message in (
        (torch.tensor([0, 4]), "lie in 0 .. 3"),
        (torch.tensor([-1]), "not in -1"),
        (torch.tensor([0.0]), "int64"),
        (torch.tensor(0), r"\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Labels(index, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_drop_the_rows_that_labels_drop(kind: str) -> None:
    """The same random bits as those that labels are dropped by, and the items' own rows otherwise."""
    data, config = data_of(kind), config_of(training__batch_size=64)
    labelled = ImageSet("", "train", data.images, np.arange(24) % 3, ("a", "b", "c"), (), "", "")
    for step in range(3):
        condition = make_batch(config, data, step, slice(8, 40)).condition
        labels = make_batch(config, labelled, step, slice(8, 40)).condition
        assert isinstance(labels, Labels) and condition is not None
        expected = stream(config.training.seed, Purpose.CONDITION, step).random(64)[8:40] < 0.4
        assert ((labels.index == 3).numpy() == expected).all()
        vectors = condition.vectors if isinstance(condition, Pair) else condition
        assert isinstance(vectors, Vectors)
        assert (vectors.known.numpy() != expected).all() and 0 < expected.sum() < 32
        if isinstance(condition, Pair):
            assert torch.equal(condition.labels.index, labels.index)
    unconditional = config_of(training__conditional=False)
    assert make_batch(unconditional, data, 0, slice(None)).condition is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_from_outside_goes_all_the_way(kind: str, tmp_path: Path) -> None:
    """Trained, averaged, saved, resumed, loaded, sampled: the encoder is learnt, and decides the samples."""
    config, data = config_of(), data_of(kind)
    facts = facts_of(data)
    learner, accelerator = learner_of(config, facts), Accelerator(cpu=True)
    name = {"vectors": "conditioning.vector.layer.weight", "pair": "conditioning.both.vector.layer.weight"}[kind]
    start = dict(learner.network.named_parameters())[name].detach().clone()
    for _ in itertools.islice(training_steps(config, data, learner, accelerator), 6):
        pass
    learnt = dict(learner.network.named_parameters())[name]
    assert not torch.equal(learnt, start)
    folder = checkpoint.save(tmp_path, learner, config, facts, {"steps": 6}, 1)

    again = learner_of(config, facts)
    checkpoint.restore(folder, again)
    for one in (learner, again):
        for _ in itertools.islice(training_steps(config, data, one, accelerator), 2):
            pass
    for ours, theirs in zip(learner.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    model = load(tmp_path, "cpu")
    assert model.data == facts and model.data.takes == facts.condition
    own = model.condition(range(4))
    assert isinstance(own, KINDS[kind]) and same(own[2:3], model.condition([2]))
    recipe = Recipe(steps=3)

    def drawn(condition: Condition | None, batch_size: int = 64) -> np.ndarray:
        return np.concatenate(list(generate(model, recipe, range(4), condition, batch_size=batch_size)))

    images = drawn(own)
    assert np.abs(images.astype(int) - drawn(own, 3)).max() <= 1
    free = model.unconditional(4)
    assert free is not None and same(free, own.dropped())
    mixed = drawn(own.dropped(torch.tensor([False, True, True, False])))
    ends = [list(states(model, recipe, range(4), condition))[-1].x for condition in (own, free)]
    assert (ends[0] - ends[1]).abs().flatten(1).amax(1).min() > 1e-5
    assert np.abs(mixed[[0, 3]].astype(int) - images[[0, 3]]).max() <= 1
    assert np.abs(mixed[[1, 2]].astype(int) - drawn(free)[[1, 2]]).max() <= 1
    with pytest.raises(UsageError, match="ONNX"):
        write_onnx(model, tmp_path / "x.onnx")
    assert with_engine(model, "auto").engine == "torch"


def test_a_condition_that_is_missing_not_taken_or_of_others_is_refused(tmp_path: Path) -> None:
    config, data = config_of(), data_of("vectors")
    for facts in (
        facts_of(data),
        DataFacts("made", (8, 8, 1), 24),
        DataFacts("", (8, 8, 1), 9, ("a", "b"), (0.5, 0.5)),
    ):
        folder = tmp_path / str(facts.takes and facts.takes.kind)
        folder.mkdir()
        write_model(folder, config, facts, {}, make_network(config, 1, facts.takes).state_dict())
        model = load(folder, "cpu")
        if facts.takes is None:
            assert model.condition(range(2)) is None and model.unconditional(2) is None
            with pytest.raises(UsageError, match="takes no condition"):
                next(states(model, Recipe(steps=2), [0], EACH["labels"][:1]))
            continue
        with pytest.raises(UsageError, match=r"model.condition\(numbers\)"):
            next(states(model, Recipe(steps=2), [0]))
        with pytest.raises(UsageError, match="2 samples was given for 3"):
            next(generate(model, Recipe(steps=2), range(3), model.condition(range(2))))
        with pytest.raises(ValueError, match=r"model.unconditional\(count\)"):
            model.denoiser(torch.zeros(1, 1, 8, 8), 0.5)
    other = EACH["labels"][:1]
    with pytest.raises(ValueError, match="of 2 classes, not of 3"):
        list(states(model, Recipe(steps=2), [0], other))
    with pytest.raises(ValueError, match="not a Vectors"):
        list(states(model, Recipe(steps=2), [0], EACH["vectors"][:1]))


def test_model_folders_name_kinds_and_never_code(tmp_path: Path) -> None:
    """An unknown kind, or facts that it cannot have, is one clear error; without a condition, format 1 is as it was."""
    config, facts = config_of(), facts_of(data_of("vectors"))
    assert "condition" not in DataFacts("made", (8, 8, 1), 24).to_json()
    weights = make_network(config, 1, facts.takes).state_dict()
    for number, (kind, inner, message) in enumerate(
        (("os:system", {}, "no condition"), ("vectors", {}, "mean"), ("vectors", {"mean": 3, "std": 1}, "vectors"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_model(folder, config, dataclasses.replace(facts, condition=ConditionFacts(kind, inner)), {}, weights)
        with pytest.raises(UndiffuseError, match=message):
            load(folder)
    with pytest.raises(UsageError, match="unet2d takes only labels"):
        make_network(config_of(network__kind="unet2d", network__patch=1, process__schedule="cosine"), 1, facts.takes)
    with pytest.raises(ValueError, match="both classes and a condition"):
        DataFacts("", (8, 8, 1), 1, ("a",), (1.0,), condition=facts.condition)


@pytest.mark.parametrize("condition", EACH.values(), ids=EACH)
def test_a_conditions_encoders_compile(condition: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph without breaks, for changing numbers of rows, and to the same bits."""
    facts = label_facts([0.5, 0.25, 0.25]) if isinstance(condition, Labels) else None
    encoders = type(condition).encoders(facts.facts if facts else condition.facts())
    network = MLP(2, 2, width=16, blocks=1, encoders=encoders)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    real: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, mode: real(module, backend="eager", fullgraph=True))
    compiled = Compiled(network)
    x, log_snr = torch.randn(5, 2), torch.linspace(-3, 3, 5)
    with torch.no_grad():
        for rows in (slice(0, 5), slice(1, 4)):
            for given in (condition[rows], condition[rows].dropped()):
                expected = network(x[rows], log_snr[rows], given)
                assert torch.equal(compiled(x[rows], log_snr[rows], given), expected)


def test_what_the_encoders_say_is_added() -> None:
    """The vector before the last SiLU is that of the noise level plus each encoder's; the names are the weights'."""
    both = {**label_encoder(3), **Vectors.encoders({"mean": [0.0] * 5})}
    torch.manual_seed(0)
    network, log_snr = Conditioning(12, label_encoder(3)), torch.linspace(-3, 3, 5)
    assert "label.weight" in network.state_dict() and set(both) == {"label", "vector"}
    torch.manual_seed(0)
    plain = Conditioning(12)
    layers = plain.layers(torch.cat([wave(log_snr[:, None] * plain.frequencies) for wave in (torch.cos, torch.sin)], 1))
    labels = EACH["labels"]
    assert isinstance(labels, Labels)
    expected = nn.functional.silu(layers + network.state_dict()["label.weight"][labels.index])
    torch.testing.assert_close(network(log_snr, labels), expected, rtol=0, atol=1e-6)

"""The noise-aware classifier: what it may depend on, how near it comes to Bayes' rule, its folder, its command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from references import SCHEDULES, as64
from scipy import stats
from torch import Tensor
from torch.nn import functional

from undiffuse.card import DataFacts
from undiffuse.classifier import CARD, WEIGHTS, Classifier, load_classifier, make_classifier, make_classifier_network
from undiffuse.conditions import Labels
from undiffuse.config import make_config
from undiffuse.data import ImageSet
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.guidance import class_log_prob, classifier_guidance
from undiffuse.guidance.classifier import gradient
from undiffuse.process import GaussianProcess, NoiseLevel, Prediction
from undiffuse.training.classifier import LARGEST_RATIO, RATIOS, noise_levels, train_classifier

CLASSES = ("a", "b", "c")
SHARE = (0.5, 0.2, 0.3)


def random_classifier(shape: tuple[int, ...] = (8, 8, 1), domain: str = "pictures") -> Classifier:
    """Of random weights, float64."""
    channels = (16,) if domain == "points" else (16, 24)
    values = {"denoiser.sigma_data": 0.6, "network.channels": channels, "network.patch": 1, "network.attention": ()}
    config, data = make_config(values), DataFacts("d", shape, 10, CLASSES, SHARE, domain=domain)
    torch.manual_seed(0)
    network = make_classifier_network(config, data).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return make_classifier("random", config, data, network.eval().requires_grad_(False), {})


def states(count: int = 8, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (1, 8, 8)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LEVELS = NoiseLevel(as64(1.0, 0.99, 0.8, 0.6, 0.3, 0.1, 0.01, 1e-4), as64(0.01, 0.1, 0.6, 0.8, 0.9, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(("shape", "domain"), [((8, 8, 1), "pictures"), ((7,), "points")])
def test_each_sample_is_classified_by_itself(shape: tuple[int, ...], domain: str) -> None:
    """A batch of 8 at 8 levels is 8 batches of one."""
    classifier = random_classifier(shape, domain)
    x_t = states(8, *((7,) if domain == "points" else ()))
    together = classifier.log_probs(x_t, LEVELS)
    assert together.std(0).min() > 1e-3
    for k in range(8):
        alone = classifier.log_probs(x_t[k : k + 1], NoiseLevel(LEVELS.alpha[k], LEVELS.sigma[k]))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-11, atol=1e-12)


def test_only_the_ratio_of_signal_and_noise_matters() -> None:
    """x_t scaled as a whole, as another process would have it, is of the same class with the same probability."""
    classifier, x_t, k = random_classifier(), states(), as64(*range(1, 9))
    scaled = NoiseLevel(k * LEVELS.alpha, k * LEVELS.sigma)
    ours = classifier.log_probs(k.view(-1, 1, 1, 1) * x_t, scaled)
    torch.testing.assert_close(ours, classifier.log_probs(x_t, LEVELS), rtol=1e-11, atol=1e-12)


def test_noise_alone_says_nothing() -> None:
    """At alpha = 0 the probabilities are the classes' frequencies, to the bit; they sum up to 1 everywhere."""
    classifier, x_t = random_classifier(), states()
    found = classifier.log_probs(x_t, NoiseLevel(as64(0.0)[0], as64(1.0)[0]))
    torch.testing.assert_close(found.exp(), torch.tensor(SHARE).double().expand(8, 3), rtol=1e-7, atol=0)
    torch.testing.assert_close(classifier.log_probs(x_t, LEVELS).exp().sum(1), torch.ones(8).double())


def test_the_gradient_is_that_of_finite_differences() -> None:
    """In x_t, through c_in and c_out, along a random direction."""
    classifier, process = random_classifier(), GaussianProcess(SCHEDULES["vp"])
    log_prob = class_log_prob(classifier, process, Labels(torch.arange(8) % 3, 3))
    x_t, t, direction = states(), torch.linspace(0.05, 0.95, 8).double(), states(8, 1, 8, 8).flip(0)
    slope = (gradient(log_prob, x_t, t) * direction).sum((1, 2, 3))
    h = 1e-5
    central = (log_prob(x_t + h * direction, t) - log_prob(x_t - h * direction, t)) / (2 * h)
    torch.testing.assert_close(slope, central, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["zero-snr", "flow", "edm", "cosine"])
def test_guidance_goes_through_every_level_without_a_jump(name: str) -> None:
    """In float32, from t = 0 to pure noise without signal: finite, bounded, and continuous at the end."""
    classifier, process = random_classifier(), GaussianProcess(SCHEDULES[name])
    network = classifier.network
    assert isinstance(network, torch.nn.Module)
    network.float()
    log_prob = class_log_prob(classifier, process, Labels(torch.arange(8) % 3, 3))

    def nothing(x: Tensor, t: float | Tensor) -> Prediction:
        return Prediction(torch.zeros_like(x), x)

    guided = classifier_guidance(nothing, process, log_prob)
    at_end = states().float() * process.prior_scale()
    near = process.schedule.time(-18.0).item()
    ends = [guided(at_end, t).x0 for t in (near, 1.0)]
    assert all(end.isfinite().all() for end in ends) and ends[1].abs().max() > 1e-4
    if process.schedule.log_snr(1.0) < -18:
        torch.testing.assert_close(*ends, rtol=1e-2, atol=1e-6)
    assert all(guided(at_end, t).x0.isfinite().all() for t in (1e-3, 0.2, 0.6, 0.99))


def test_samples_of_any_class_are_not_guided() -> None:
    """Their label has probability 1."""
    classifier, process = random_classifier(), GaussianProcess(SCHEDULES["vp"])
    labels = Labels(torch.tensor([0, 3, 1, 3, 2, 3, 0, 3]), 3)
    found = gradient(class_log_prob(classifier, process, labels), states(), 0.5).flatten(1).abs().amax(1)
    assert (found[labels.index == 3] == 0).all() and (found[labels.index < 3] > 0).all()


def test_labels_that_it_does_not_know_are_refused() -> None:
    """Another number of classes; a class without a picture; a model of other shapes or classes."""
    classifier, process = random_classifier(), GaussianProcess(SCHEDULES["vp"])
    with pytest.raises(UsageError, match="knows 3 classes, and the labels 4"):
        class_log_prob(classifier, process, Labels(torch.tensor([0]), 4))
    empty = DataFacts("d", (8, 8, 1), 10, CLASSES, (0.5, 0.5, 0.0))
    unseen = Classifier("u", classifier.network, 0.5, classifier.log_prior, empty, {})
    with pytest.raises(UsageError, match="saw no picture of 'c'"):
        class_log_prob(unseen, process, Labels(torch.tensor([2]), 3))
    classifier.check(classifier.data, "itself")
    with pytest.raises(UsageError, match="train one with --size 16"):
        classifier.check(DataFacts("d", (16, 16, 1), 10, CLASSES, SHARE), "other")
    with pytest.raises(UsageError, match="has the classes a, b, c, and other has a, c, b"):
        classifier.check(DataFacts("d", (8, 8, 1), 10, ("a", "c", "b"), SHARE), "other")
    with pytest.raises(UsageError, match="no class 'd'"):
        classifier.of_class("d", 2)
    labels = classifier.of_class("b", 2)
    assert labels.index.tolist() == [1, 1] and labels.classes == 3


# Training, against Bayes' rule.


def gaussians(count: int, domain: str, seed: int) -> tuple[ImageSet, float, float]:
    """Two classes N(+-m, s^2 I), two thirds of the first: the set, |2 m| and s in x_0."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 1 / 3).astype(np.int64)
    sign = (1 - 2 * labels)[:, None]
    if domain == "points":
        m, s = np.array([0.3, -0.2, 0.1, 0.0]), 0.15
        rows = (sign * m + s * random.standard_normal((count, 4))).astype(np.float32)
    else:
        m, s = np.full(64, 4.0), 24.0
        rows = np.clip(127.5 + sign * m + s * random.standard_normal((count, 64)), 0, 255).round().astype(np.uint8)
        rows, m, s = rows.reshape(count, 8, 8, 1), m / 127.5, s / 127.5
    made = ImageSet("two", "train", rows, labels, ("plus", "minus"), (), "", str(seed), domain=domain)
    return made, float(2 * np.linalg.norm(m)), s


def bayes(distance: float, spread: float) -> tuple[float, float]:
    """The best accuracy, and the nats of the exact posterior, of N(+-distance / 2, spread^2) with shares 2/3, 1/3."""
    edge, half = spread**2 / distance * math.log(0.5), distance / 2  # the first class lies above the edge
    best = 2 / 3 * stats.norm.sf(edge, half, spread) + stats.norm.cdf(edge, -half, spread) / 3
    z = np.linspace(-half - 10 * spread, half + 10 * spread, 20001)
    plus, minus = 2 / 3 * stats.norm.pdf(z, half, spread), stats.norm.pdf(z, -half, spread) / 3
    both = plus + minus
    nats = -(plus * np.log(plus / both) + minus * np.log(minus / both))
    return best, float(np.trapezoid(nats, z))


@pytest.mark.parametrize(("domain", "steps"), [("points", 300), ("pictures", 200)])
def test_it_comes_near_the_best_there_is(domain: str, steps: int, tmp_path: Path) -> None:
    """At each noise level the accuracy is that of Bayes' rule, by three standard errors and one per cent, and the
    cross-entropy that of the true posterior, by 0.03 nats: so the probabilities are right, not only their order."""
    train, distance, s = gaussians(4000, domain, 0)
    values = {"training.steps": steps, "network.channels": (32,), "network.blocks": 1}
    held_out, *_ = gaussians(2000, domain, 1)
    classifier = train_classifier(values, tmp_path / "classifier", data=train, held_out=held_out)
    for found in classifier.training["accuracy"]["levels"]:
        best, nats = bayes(distance, math.hypot(s, found["ratio"]))
        error = math.sqrt(best * (1 - best) / 2000)
        assert found["accuracy"] == pytest.approx(best, abs=3 * error + 0.01), found
        assert found["nats"] == pytest.approx(nats, abs=0.03), found
        assert found["ratio"] in RATIOS


def test_training_levels_are_even_in_the_logarithm() -> None:
    """From 1 / 80 to 80, alpha = 1."""
    level = noise_levels(as64(0.0, 0.5, 1.0))
    torch.testing.assert_close(level.sigma, as64(1 / LARGEST_RATIO, 1.0, LARGEST_RATIO))
    assert (level.alpha == 1).all()


TINY = ("--steps", "6", "--set", "network.channels=8", "--set", "training.batch_size=8")


def test_the_command_trains_measures_and_repeats(data: str, command: Command) -> None:
    """A table, a folder that loads as what was trained, the same weights of the same seed; nothing is overwritten."""
    code, out, err = command("train-classifier", data, *TINY)
    assert code == 0, err
    assert "sigma / alpha" in out and "trained 6 steps" in out and "runs/tiny-classifier" in out
    code, out, err = command("train-classifier", data, *TINY)
    assert code == 0 and "runs/tiny-classifier-2" in out
    code, _, err = command("train-classifier", data, *TINY, "--seed", "1", "--out", "other")
    first, second, other = (
        (Path(p) / WEIGHTS).read_bytes() for p in ("runs/tiny-classifier", "runs/tiny-classifier-2", "other")
    )
    assert first == second != other
    card = json.loads(Path("runs/tiny-classifier", CARD).read_text())
    assert card["data"]["classes"] == ["dark", "grey", "bright"] and len(card["data"]["fingerprint"]) == 64
    assert card["training"]["steps"] == 6 and card["training"]["seconds"] >= 0
    assert card["training"]["accuracy"]["split"] == "test" and card["training"]["accuracy"]["images"] == 7
    assert sorted(path.name for path in Path("runs/tiny-classifier").iterdir()) == [CARD, WEIGHTS]
    assert (
        len({path.stat().st_mode for path in Path("runs/tiny-classifier").iterdir()}) == 1
    )  # as readable as each other
    classifier = load_classifier("runs/tiny-classifier", "cpu")
    log_probs = classifier.log_probs(torch.zeros(2, 1, 16, 16), NoiseLevel(as64(1.0)[0], as64(0.5)[0]))
    assert log_probs.shape == (2, 3) and log_probs.dtype == torch.float32
    assert functional.softmax(log_probs, 1).sum(1).tolist() == pytest.approx([1, 1])
    code, _, err = command("train-classifier", data, *TINY, "--out", "other")
    assert code == 2 and "--out other exists already" in err
    assert command("train-classifier", data, *TINY, "--out", "other", "--force")[0] == 0
    assert Path("other", WEIGHTS).read_bytes() == first


def test_bad_input_gets_one_line(data: str, command: Command, tmp_path: Path) -> None:
    """No traceback, and nothing left behind."""
    np.savez(tmp_path / "one.npz", images=np.zeros((20, 16, 16), np.uint8), labels=np.zeros(20, int), classes=["a"])
    np.savez(tmp_path / "none.npz", images=np.zeros((20, 16, 16), np.uint8))
    cases = {
        ("nothing-of-this-name",): "no data set and no path",
        ("one.npz", "--steps", "2"): "fewer than two classes",
        ("none.npz", "--steps", "2"): "fewer than two classes",
        (data, "--steps", "2", "--minutes", "1"): "exclude each other",
        (data, "--steps", "0"): "training.steps = 0",
        (data, "--set", "process.steps=10"): "process.steps is not a setting of a classifier",
        (data, "--set", "training.preview_every=10"): "is not a setting of a classifier",
        (data, "--set", "network.kind=mlp"): "is not a setting of a classifier",
        (data, "--set", "zzz=1"): "zzz",
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, reason in cases.items():
        code, _, err = command("train-classifier", *arguments)
        assert code == 2 and reason in err and len(err.strip().splitlines()) == 1, (arguments, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_interrupted_training_leaves_nothing(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the end, and a loss that is not finite."""
    from undiffuse.training import classifier as module

    values = {"data.source": data, "training.steps": 6, "network.channels": (8,)}
    usual, calls = module.loss, []

    def interrupted(*arguments: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(module, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(values, tmp_path / "out")
    monkeypatch.setattr(module, "loss", lambda *arguments: usual(*arguments) * math.nan)
    with pytest.raises(UndiffuseError, match=r"the loss is nan at step 6: lower training\.learning_rate"):
        train_classifier(values, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused(data: str, tmp_path: Path) -> None:
    """By one line that names the file; a folder without a classifier is not one."""
    folder = tmp_path / "classifier"
    train_classifier({"data.source": data, "training.steps": 1, "network.channels": (8,)}, folder)
    with pytest.raises(UsageError, match="no classifier in"):
        load_classifier(tmp_path)
    card = json.loads((folder / CARD).read_text())
    for change, reason in (
        ({"data": {**card["data"], "classes": [], "class_share": []}}, "damaged"),
        ({"data": {**card["data"], "classes": ["a", "b"], "class_share": [0.5, 0.5]}}, "weights"),
        ({"config": {}}, "damaged"),
        ({"format": 2}, "format"),
    ):
        (folder / CARD).write_text(json.dumps({**card, **change}))
        with pytest.raises(UndiffuseError, match=reason):
            load_classifier(folder)
    (folder / CARD).write_text(json.dumps(card))
    (folder / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(UndiffuseError, match=WEIGHTS):
        load_classifier(folder)

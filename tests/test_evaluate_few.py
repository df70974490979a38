"""Evaluation of few pictures, of any size and of one class: what is measured, at which size, and what is left out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image

from undiffuse.data import ImageSet
from undiffuse.data import load as load_data
from undiffuse.errors import UsageError
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.evaluate import open_subject
from undiffuse.evaluation.report import conditions_line, notes
from undiffuse.metrics.blocks import blocks
from undiffuse.metrics.features import find_extractor
from undiffuse.metrics.frechet import frechet_distance, measure_frechet, moments
from undiffuse.metrics.kernel import measure_kernel
from undiffuse.metrics.measure import METRICS
from undiffuse.plots import save_image


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own features, of images of any size: means and spreads of the quarters."""
    source = (
        "import torch\n"
        "def plain(x):\n"
        "    x = torch.nn.functional.adaptive_avg_pool2d(x.float().mean(3, keepdim=True).permute(0, 3, 1, 2), 4)\n"
        "    return x.flatten(1)\n"
    )
    (tmp_path / "few_features.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    return "few_features:plain"


def noise(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_folder(path: Path, images: np.ndarray) -> Path:
    for k, image in enumerate(images):
        save_image(image, path / f"{k:06d}.png")
    return path


@pytest.mark.parametrize(("height", "width"), [(80, 80), (65, 65), (40, 72), (12, 8), (16, 16)])
def test_a_folder_is_measured_as_its_pixels_in_an_array(tmp_path: Path, plain: str, height: int, width: int) -> None:
    """Of any size, square or not: the same numbers as the .npz, and the size is said."""
    real, samples = noise(60, height, width), noise(7, height, width, seed=1)
    np.savez(tmp_path / "real.npz", images=real)
    np.savez(tmp_path / "samples.npz", images=samples)
    (array,) = evaluate("samples.npz", "real.npz", features=plain)
    (folder,) = evaluate(str(write_folder(tmp_path / "samples", samples)), "real.npz", features=plain)
    assert folder.to_json()["metrics"] == array.to_json()["metrics"]
    np.testing.assert_array_equal(folder.subject.items.images, samples)
    assert f"measured at {height}x{width}x3" in conditions_line(folder)
    assert folder.to_json()["conditions"]["shape"] == (height, width, 3)
    # The data as a folder, too: pictures of one size that is no square are measured against as they are.
    (both,) = evaluate("samples", str(write_folder(tmp_path / "real", real)), features=plain)
    assert sorted(image.tobytes() for image in both.subject.train) == sorted(
        image.tobytes() for image in load_data("real", keep_size=True).images
    )
    assert both.conditions["shape"] == (height, width, 3) and "brought" not in conditions_line(both)


def test_the_data_is_brought_to_the_samples_in_the_stated_way(tmp_path: Path, plain: str) -> None:
    """Scaled by Pillow's Lanczos; so is what makes the floor; both sizes are said."""
    real = noise(60, 24, 24)
    np.savez(tmp_path / "real.npz", images=real)
    np.savez(tmp_path / "samples.npz", images=noise(8, 16, 16, seed=1))
    (measured,) = evaluate("samples.npz", "real.npz", features=plain)
    by_hand = [np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.LANCZOS)) for one in real]
    seen = [*measured.subject.train, *measured.reference.items.images]
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in by_hand)
    assert "resized from 24x24; measured at 16x16x3" in conditions_line(measured)
    assert measured.conditions["stored_sizes"] == [(24, 24)]


def test_pictures_of_several_sizes_are_not_resized_unasked(tmp_path: Path, plain: str, command: Command) -> None:
    """Refused, with the sizes; --size brings them, and the data, to one."""
    for k in range(12):
        save_image(noise(1, 20 + k % 2, 24, seed=k)[0], tmp_path / "mixed" / f"{k}.png")
    np.savez(tmp_path / "real.npz", images=noise(60))
    words = ["evaluate", "mixed", "--data", "real.npz", "--features", plain, "--json", "x.json"]
    code, _, err = command(*words)
    assert code == 2 and "2 sizes, from 20x24 to 21x24" in err and "--size" in err and len(err.splitlines()) == 1
    code, out, err = command(*words, "--size", 10)
    assert code == 0, err
    assert "measured at 10x10x3" in out and "resized from 8x8" in out
    assert json.loads((tmp_path / "x.json").read_text())["conditions"]["shape"] == [10, 10, 3]
    code, _, err = command("evaluate", "emoji", "--size", 10)
    assert code == 2 and "--size" in err
    subject = open_subject("mixed", size=10)
    assert isinstance(subject, ImageSet) and subject.shape == (10, 10, 3)


def test_compare_takes_folders_of_their_own_size(tmp_path: Path, plain: str, command: Command) -> None:
    """Of 80 pixels and an array of them: comparable, as many as the smaller one holds, no figure unless asked for."""
    np.savez(tmp_path / "real.npz", images=noise(60, 80, 80))
    np.savez(tmp_path / "a.npz", images=noise(9, 80, 80, seed=1))
    write_folder(tmp_path / "b", noise(8, 80, 80, seed=2))
    code, out, err = command("compare", "a.npz", "b", "--data", "real.npz", "--features", plain)
    assert code == 0, err
    assert "8 samples of each" in out and "measured at 80x80x3" in out and "8 real images" in out
    assert {path.suffix for path in tmp_path.iterdir()} <= {".npz", ".py", ""}
    write_folder(tmp_path / "c", noise(8, 40, 40, seed=2))
    code, _, err = command("compare", "a.npz", "c", "--data", "real.npz", "--features", plain)
    assert code == 2 and "--size" in err


def test_evaluate_writes_what_was_asked_for_and_nothing_else(tmp_path: Path, plain: str, command: Command) -> None:
    """No report uncalled for; those of gen and gen.npz are two; what is there is refused before the work."""
    np.savez(tmp_path / "real.npz", images=noise(60))
    np.savez(tmp_path / "gen.npz", images=noise(8, seed=1))
    write_folder(tmp_path / "gen", noise(8, seed=2))
    here = set(tmp_path.iterdir())
    for subject in ("gen", "gen.npz"):
        code, out, err = command("evaluate", subject, "--data", "real.npz", "--features", plain)
        assert code == 0 and "--report" in out, err
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == here
    words = ["evaluate", "gen", "--data", "real.npz", "--features", plain]
    assert command(*words, "--report", "r.html", "--json", "r.json")[0] == 0
    page = (tmp_path / "r.html").read_bytes()
    for option, name in (("--report", "r.html"), ("--json", "r.json")):
        code, out, err = command(*words, option, name)
        assert code == 2 and "--force" in err and not out and len(err.splitlines()) == 1
    assert (tmp_path / "r.html").read_bytes() == page
    assert command("evaluate", "gen.npz", *words[2:], "--report", "r.html", "--force")[0] == 0
    assert (tmp_path / "r.html").read_bytes() != page


NEEDS = {  # by definition: a covariance takes 2, a half of one 4, a k-th neighbour k others
    "frechet": (2, 2),
    "frechet_limit": (4, 2),
    "kernel": (2, 2),
    "precision": (4, 4),
    "recall": (4, 4),
    "density": (6, 6),
    "coverage": (6, 6),
    "nearer": (2, 1),
    "copies": (2, 1),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("pictures", [2, 5, 9, 10, 19, 20, 41, 59, 60])
def test_whatever_can_be_measured_of_few_pictures_is(tmp_path: Path, plain: str, pictures: int) -> None:
    """Every metric is there, finite, or left out by name; no test split: no floor, no copying, and it is said."""
    np.savez(tmp_path / "real.npz", images=noise(pictures))
    held_out = pictures // 10
    for count in (2, 3, 4, 5, 6, 11):
        np.savez(tmp_path / "few.npz", images=noise(count, seed=count))
        for split in ("test", "train"):
            (measured,) = evaluate("few.npz", "real.npz", split=split, features=plain)
            against = held_out if held_out and split == "test" else pictures - held_out
            keys = {key for key, needs in NEEDS.items() if count >= needs[0] and against >= needs[1]}
            without_copying = {"nearer", "copies"} if split == "train" or not held_out else set()
            assert measured.conditions["images"] == against
            assert set(measured.values) == keys - without_copying
            assert set(measured.left_out) == set(NEEDS) - keys
            others = pictures - held_out if split == "test" else held_out
            distances = set(measured.values) - {"nearer", "copies"}
            assert set(measured.floor) <= distances
            assert bool(measured.floor) == (bool(distances) and held_out > 0 and others >= 2)
            assert ("no floor" in " ".join(notes(measured))) == (bool(distances) and not measured.floor)
            for value in (*measured.values.values(), *measured.floor.values()):
                ends = [end for end in (value.low, value.high) if end is not None]
                assert len(ends) in (0, 2) and all(map(math.isfinite, (value.value, *ends)))


def test_the_distances_of_two_are_their_definitions() -> None:
    """Two samples, two reference items: written out by hand; nothing to leave out, so no interval."""
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [3.0, 1.0]])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 2 + 1) ** 3

    between = sum(k(a, b) for a in x for b in y)
    measured = measure_kernel(x, y)["kernel"]
    assert measured.value == pytest.approx(k(*x) + k(*y) - between / 2)
    assert measured.low is None and measured.high is None
    assert measure_kernel(np.vstack([x, x[:1]]), np.vstack([y, y[:1]]))["kernel"].low is not None
    assert set(measure_frechet(x, y)) == {"frechet"}
    assert set(measure_frechet(np.vstack([x, x]), y)) == {"frechet", "frechet_limit"}
    assert measure_frechet(x, y)["frechet"].value == pytest.approx(frechet_distance(moments(x), moments(y)))


def labelled(counts: dict[int, int], fingerprint: str = "") -> ImageSet:
    labels = np.repeat(list(counts), list(counts.values()))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    return ImageSet("some", "train", images, labels, ("a", "b", "c"), (), "not stated", fingerprint or str(counts))


@pytest.mark.parametrize(
    ("counts", "classifier"),
    [({0: 30}, False), ({0: 30, 1: 1}, False), ({0: 9, 1: 9}, False), ({0: 10, 2: 10}, True), ({}, False)],
)
def test_a_classifier_is_trained_of_two_classes_and_enough_of_each(
    counts: dict[int, int], classifier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class tells nothing apart (accuracy 100%); classes without a picture do not count."""
    monkeypatch.setattr("undiffuse.metrics.features.classifier.LEAST_STEPS", 1)
    monkeypatch.setattr("undiffuse.metrics.features.efficientnet.efficientnet", lambda: "ImageNet's")
    found = find_extractor("auto", labelled(counts), labelled(counts))
    assert (found != "ImageNet's") == classifier
    if len(counts) < 2:
        with pytest.raises(UsageError, match="two classes"):
            find_extractor("classifier", labelled(counts), labelled(counts))


def test_without_a_test_split_a_classifier_has_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.metrics.features.classifier.LEAST_STEPS", 1)
    data = labelled({0: 11, 1: 12}, "of none other")
    assert find_extractor("classifier", data, None).facts["accuracy"] is None


def test_large_pictures_are_read_in_small_blocks() -> None:
    """64 MiB at a time, whatever their size; features and small pictures as ever."""
    large = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (50, 512, 512, 3), (0, 0, 0, 0))
    sizes = [x.numel() * x.element_size() for _, x in blocks(large)]
    assert max(sizes) <= 64 << 20 and sum(sizes) == large.size * 8
    (only,) = blocks(np.zeros((2048, 2048), np.float32))
    assert only[1].dtype == torch.float64 and len(only[1]) == 2048


def test_every_metric_has_its_needs() -> None:
    assert {
        key for key, metric in METRICS.items() if metric.group in ("frechet", "kernel", "manifold", "copying")
    } == set(NEEDS)

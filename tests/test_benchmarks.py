"""The pure parts of what the benchmarks measure with, and the table of samplers."""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

# No packages: their files import each other like this.
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "benchmarks/speed"))

import finetune
import guidance
import samplers
import seeds
import students
import trilemma
from density_pairs import by_distinct, compared
from measuring import alternate, excess, megaflops, nearest_width
from run import kind_of
from systems import our_config, our_megaflops

from undiffuse.data import ImageSet
from undiffuse.errors import UndiffuseError
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe, generate
from undiffuse.model import load
from undiffuse.training.classifier import train_classifier


def test_nearest_width_is_nearest_as_a_ratio() -> None:
    def cost(width: int) -> float:
        return width**2

    assert nearest_width(64.0**2, cost) == 64
    assert nearest_width(59.0**2, cost) == 56  # sqrt(56 * 64) is 59.9
    assert nearest_width(60.0**2, cost) == 64
    assert nearest_width(1.0, cost) == 8


def test_megaflops_are_those_of_the_formula() -> None:
    convolution = nn.Conv2d(3, 16, 3, padding=1)
    assert megaflops(convolution, (3, 8, 8)) == pytest.approx(2 * 3 * 16 * 9 * 64 / 1e6, rel=1e-12)


def test_megaflops_count_attention() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    tokens, width, heads = 49, 64, 2
    assert megaflops(Attention(), (heads, tokens, width)) == pytest.approx(
        2 * 2 * heads * tokens**2 * width / 1e6, rel=1e-12
    )


def test_widening_reaches_a_peer() -> None:
    """Within the granularity of 8 channels, a few percent where the peers are."""
    cost = {}

    def cost_of(width: int) -> float:
        return cost.setdefault(width, our_megaflops(our_config(width=width)))

    for target in (583.0, 642.0):
        assert cost_of(nearest_width(target, cost_of)) == pytest.approx(target, rel=0.08)


def test_excess_is_paired() -> None:
    figure = excess([1.1, 2.2, 4.8], [1.0, 2.0, 4.0], batch=1)
    assert (figure["median"], figure["min"], figure["max"]) == (10.0, 10.0, 20.0)
    assert figure["repeats"] == 3 and figure["batch"] == 1


def test_alternate_reverses_every_other_round() -> None:
    calls: list[str] = []

    def run(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times = alternate({name: lambda name=name: run(name) for name in "ab"}, 2)
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert times == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution and matrix multiplication"),
        ("aten::convolution_backward", "convolution and matrix multiplication"),
        ("aten::addmm", "convolution and matrix multiplication"),
        ("aten::mm", "convolution and matrix multiplication"),
        ("aten::bmm", "convolution and matrix multiplication"),
        ("aten::native_group_norm_backward", "normalisation"),
        ("aten::silu_backward", "SiLU"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "softmax"),
        ("aten::_fused_adamw_", "optimiser, clipping, EMA"),
        ("aten::_foreach_norm", "optimiser, clipping, EMA"),
        ("aten::linalg_vector_norm", "optimiser, clipping, EMA"),
        ("aten::cat", "other operators"),
    ],
)
def test_kinds_of_operators(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_models_are_compared_picture_by_picture() -> None:
    """A constant difference has no error however much the pictures differ; the fifths hold all of them."""
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0, 8, 103)
    found = compared(theirs - 0.25, theirs)
    assert found["difference"] == pytest.approx(-0.25, abs=1e-12)
    assert found["standard_error"] < 1e-12 and found["share_lower"] == 1
    images = np.stack([rng.integers(0, most, (28, 28, 1)) for most in range(1, 104)])
    parts = by_distinct(images, theirs - np.arange(103), theirs)
    assert [part["images"] for part in parts] == [21, 21, 21, 20, 20]
    assert [part["difference"] for part in parts] == pytest.approx([-10, -31, -52, -72.5, -92.5])
    assert all(before["most"] <= after["fewest"] for before, after in itertools.pairwise(parts))


def test_samplers_table_and_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path) -> None:
    """The rows asked for are measured once: a second call adds what is missing and leaves what is there."""
    out = tmp_path / "found.json"
    words = ["samplers.py", str(whole), str(out), "-n", "8", "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "ddim,heun", "--evaluations", "1,3"])
    samplers.main()
    first = read_json(out)["frechet"]
    assert {name: list(row) for name, row in first.items()} == {"ddim": ["1", "3"], "heun": ["1", "3"]}
    monkeypatch.setattr(sys, "argv", [*words, "ddim", "--evaluations", "3,2", "--figure", str(tmp_path / "f.png")])
    samplers.main()
    second = read_json(out)
    assert second["frechet"]["heun"] == first["heun"] and second["frechet"]["ddim"]["3"] == first["ddim"]["3"]
    assert set(second["frechet"]["ddim"]) == {"1", "2", "3"} and second["conditions"]["versions"]["torch"]
    assert (tmp_path / "found.png").exists() and (tmp_path / "f.png").exists()
    table = samplers.markdown(second["frechet"]).splitlines()
    assert table[0] == "| | 1 | 2 | 3 |" and table[3].split(" | ")[2] == "-"  # heun was not asked for 2
    assert samplers.recipe_of({"sampler": "heun"}, 3).evaluations == 3


def test_the_papers_table_of_ddim() -> None:
    """The rows of Song et al. 2021, table 1; its steps are ours, but for the 5 and the 250 that are ours alone."""
    assert list(samplers.PAPER) == list(samplers.CIFAR)
    ours = [int(count) for count in samplers.PAPER_EVALUATIONS.split(",")]
    assert set(samplers.CIFAR_STEPS) < set(ours)
    found = read_json(Path(__file__).parents[1] / "docs" / "lecture" / "ddim.json")
    assert list(found["frechet"]) == list(samplers.PAPER)
    titles = [title for title, _, _ in samplers.panels(found, paper=True)]
    assert titles[1].startswith("CIFAR-10") and "runs/lecture" in titles[0]


def test_guided_samples_begin_with_those_of_the_command(whole: Path, tmp_path: Path) -> None:
    """At scale 1 they are `undiffuse sample`'s own; every way to guide changes all that have a class."""
    model, recipe = load(whole, "cpu"), Recipe(steps=3, seed=5)
    settings = {"data.source": model.config.data.source, "training.steps": 2, "network.channels": (8,)}
    classifier = train_classifier(settings, tmp_path / "classifier")
    ways = guidance.contenders(model, classifier, model, [1.0, 200.0], [(0.01, 100.0)])
    plain, *guided = (guidance.draw(one, recipe, 6) for one in ways)
    (expected,) = generate(model, recipe, range(6), model.condition(range(6)))
    assert (plain == expected).all()
    assert [one.name.split()[0] for one in ways[1:]] == [
        "classifier-free",
        "classifier-free",
        "classifier",
        "autoguidance",
    ]
    assert all((images != plain).any((1, 2, 3)).all() for images in guided[:3])
    assert abs(guided[3].astype(int) - plain).max() <= 1  # by itself, which is no guide


def test_the_table_of_guidance_has_means_over_the_seeds() -> None:
    """A row for each scale, in their order."""
    of_seed = [{key: {"value": value} for key in guidance.METRICS} for value in (0.25, 0.75)]
    row = {"10": {"0": of_seed[0], "1": of_seed[1]}, "2": {"0": of_seed[1]}}
    scales, values = guidance.means(row, "recall")
    assert scales.tolist() == [2, 10] and values.tolist() == [0.75, 0.5]
    assert guidance.markdown({"ADM-G": row}).splitlines()[2:] == [
        "| ADM-G | 2 | 0.750 | 0.750 | 0.750 | 0.750 |",
        "| ADM-G | 10 | 0.500 | 0.500 | 0.500 | 0.500 |",
    ]


def test_the_pictures_to_fine_tune_on_are_the_first_of_each_class() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    data = ImageSet("all", "train", images, np.arange(12) % 3, ("a", "b", "c"), (), "", "f")
    mine = finetune.some(data, 2)
    assert mine.images.ravel().tolist() == [0, 3, 1, 4, 2, 5] and mine.labels is not None
    assert mine.labels.tolist() == [0, 0, 1, 1, 2, 2] and mine.name == "all-6" and mine.fingerprint != data.fingerprint


def test_figures_of_several_seeds_are_joined(tmp_path: Path) -> None:
    """By row and figure; None is no figure; the mean stands between the least and the most."""
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        rows = {"a": {"x": value, "y": None}, "b": {"x": 4, "y": value if seed else None}}
        write_json(tmp_path / f"run-{seed}.json", {"seed": seed, "rows": rows})
    write_json(tmp_path / "steps.json", {"a": 3})
    rows = seeds.joined(tmp_path)
    assert rows["a"] == {"x": {"mean": 3.0, "least": 1.0, "most": 6.0, "seeds": 3}}
    assert rows["b"]["y"] == {"mean": 4.0, "least": 2.0, "most": 6.0, "seeds": 2}
    assert seeds.table(rows, ("x", "y")) == [
        "| | x | y |",
        "|---|---|---|",
        "| a | 3 (1 to 6) | - |",
        "| b | 4 | 4 (2 to 6) |",
    ]
    seeds.report(tmp_path, tmp_path / "all.json", ("x",))
    written = read_json(tmp_path / "all.json")
    assert written["rows"] == rows and written["runs"]["run-2"] == {"seed": 2}


@pytest.mark.parametrize("way", [way for way in students.WAYS if way != "teacher"])
def test_every_way_to_one_step_can_be_trained(way: str, whole: Path, tmp_path: Path) -> None:
    """In a second of a tiny teacher: a setting that does not fit would come to light after an hour."""
    options = argparse.Namespace(out=tmp_path, teacher=str(whole), guidance=1.0, minutes=0.02)
    model = load(students.trained(way, 0, options))
    assert model.config.network.jumps and model.training["clock"] == "cpu"


@pytest.mark.parametrize("system", ["diffusion", "one-step", "flow-exact", "vae"])
def test_systems_of_the_trilemma_can_be_trained(system: str, data: str, tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path, data=data, minutes=0.02)
    run = trilemma.trained(system, 0, options)
    model = load(run)
    assert model.data.classes == ("dark", "grey", "bright")
    names = {"vae": {"vae", "vae, temperature .8", "vae, centres of pixels"}}.get(system, {system})
    found = trilemma.variants(system, run)
    assert set(found) == names and all(load(folder).parameters == model.parameters for folder in found.values())
    assert system != "flow-exact" or model.network.noise == 0


def test_what_was_measured_otherwise_is_not_taken(tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path, seeds=1, only=None, minutes=2.0, n=10)
    seeds.measure(tmp_path / "a-0.json", options, 0, lambda: {"rows": {"a": {"x": 1.0}}})
    assert [name for name, _, _ in seeds.missing(options, ("a", "b"))] == ["b"]
    with pytest.raises(SystemExit, match=r"measured with minutes = 2.0, not 3.0"):
        list(seeds.missing(argparse.Namespace(**vars(options) | {"minutes": 3.0}), ("a", "b")))


def test_a_run_that_fails_is_written_down(tmp_path: Path) -> None:
    def fails() -> dict[str, object]:
        raise UndiffuseError("the loss is nan")

    options = argparse.Namespace(out=tmp_path, seeds=1, only=None, minutes=2.0, n=10)
    seeds.measure(tmp_path / "a-0.json", options, 0, fails)
    assert read_json(tmp_path / "a-0.json")["failed"] == "the loss is nan" and seeds.joined(tmp_path) == {}
    assert not list(seeds.missing(options, ("a",)))

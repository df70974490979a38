"""Two processes on one CPU (gloo): the same run and the same samples as one, up to float summation."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ignore, metrics
from safetensors.torch import load_file

from undiffuse.config import preset
from undiffuse.distilling import distill
from undiffuse.evaluation import density
from undiffuse.model import checkpoints, load
from undiffuse.objectives import DRAWS
from undiffuse.randomness import Purpose, torch_generator
from undiffuse.training import train

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "undiffuse"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def arguments(values: dict[str, Any], out: Path) -> list[str]:
    return ["train", "--out", str(out), *(f"--set={key}={json.dumps(value)}" for key, value in values.items())]


def two(*args: str) -> str:
    done = subprocess.run([*LAUNCH, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


def agree(folder: Path, *kinds: str, most: float) -> None:
    """The runs "one" and "two" do in all of these kinds of tensors, and in their losses and gradients' norms.

    Not bit for bit: each process sums its half of the batch, and AdamW turns a rounding of a gradient near 0 into
    a visible share of the rate. So nearly all agree to 1e-5, and all to `most`, some steps' rates.
    """
    states = [load_file(checkpoints(folder / n)[-1] / "training.safetensors") for n in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for kind in kinds:
        names = [name for name in states[0] if name.startswith(kind)]
        difference = torch.cat([(states[0][name] - states[1][name]).abs().float().flatten() for name in names])
        assert difference.quantile(0.99) < 1e-5 and difference.max() < most, kind
    for measured in ("loss", "gradient_norm"):
        found = [[row[measured] for row in metrics(folder / name)] for name in ("one", "two")]
        assert found[0] == pytest.approx(found[1], rel=1e-4), measured


def test_two_processes_train_as_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    """After 8 steps; then one process resumes what two began, and the other way round."""
    values = {**tiny, "training.steps": 8}
    said = two(*arguments(values, tmp_path / "two"))
    assert said.count("trained 8 steps") == 1
    card = json.loads((checkpoints(tmp_path / "two")[-1] / "model.json").read_text())
    assert card["training"]["processes"] == 2
    train(values, tmp_path / "one", report=ignore)
    agree(tmp_path, "network.", most=2e-3)
    assert train({}, tmp_path / "two", resume=True, report=ignore).finished


def test_two_processes_learn_a_likelihood_as_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The odds that both begin with, the times that their losses have taught, and the loss itself."""
    values = {**preset("likelihood"), **tiny, "network.head": 8, "training.steps": 6}
    two(*arguments(values, tmp_path / "two"))
    train(values, tmp_path / "one", report=ignore)
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    moments = [load_file(checkpoints(tmp_path / n)[-1] / "training.safetensors") for n in ("one", "two")]
    torch.testing.assert_close(*[m["importance.moments"] for m in moments], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("loss", "jumps"), [("adversarial", 4), ("matching", 1)])
def test_two_processes_sharpen_as_one(loss: str, jumps: int, whole: Path, data: str, tmp_path: Path) -> None:
    """The student, its critic and what follows it; of four jumps, one process has steps in which none ends in data, and
    both have."""
    short = {"training.steps": 4, "training.precision": "fp32", "training.batch_size": 8, "data.source": data}
    if jumps > 1:
        ends = [shown(step, 8, jumps) for step in range(4)]
        assert (0, 0) in ends and any(0 in pair and pair != (0, 0) for pair in ends)
    began, values = tmp_path / "student", {**short, "objective.loss": loss}
    distill(whole, began, settings={**short, "objective.jumps": jumps}, report=ignore)
    asked = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    two("distill", str(whole), "--from", str(began), "--out", str(tmp_path / "two"), *asked)
    distill(whole, tmp_path / "one", student=began, settings=values, report=ignore)
    agree(tmp_path, "network.", "companions.weights.", "companions.exp_avg.", most=1e-2)


def shown(step: int, size: int, jumps: int) -> tuple[int, int]:
    """How many jumps of a step end in data, of each of two processes."""
    u = DRAWS["independent"](size, torch_generator(0, Purpose.TIME, step))
    last = (u * size * jumps).long() % jumps == jumps - 1
    return int(last[: size // 2].sum()), int(last[size // 2 :].sum())


@pytest.mark.parametrize("name", ["gan", "ar-fast"])
def test_two_processes_train_a_rival_as_one(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Of several networks, each in its own phase."""
    sizes = {key: value for key, value in tiny.items() if not key.startswith("network")}
    values = {**preset(name), **sizes, "training.steps": 4, "training.batch_size": 8}
    two(*arguments(values, tmp_path / "two"))
    train(values, tmp_path / "one", report=ignore)
    agree(tmp_path, "network.", "optimizer.", most=1e-2)


def test_two_processes_keep_to_a_budget(tiny: dict[str, Any], tmp_path: Path) -> None:
    """--minutes with two processes: they agree on the plan and end together."""
    values = {**tiny, "training.minutes": 0.03, "training.log_every": 10}
    del values["training.steps"]
    assert "trained" in two(*arguments(values, tmp_path))
    state = json.loads((checkpoints(tmp_path)[-1] / "training.json").read_text())
    assert state["step"] == state["total"]


def test_two_processes_sample_as_one(whole: Path, tmp_path: Path) -> None:
    """The same images, labels and order, also for a number that does not divide, and fewer than processes."""
    from undiffuse import load, sample

    model = load(whole)
    assert two("sample", str(whole), "-n", "7", "--steps", "5", "--out", str(tmp_path / "x.npz")).count("samples") == 1
    with np.load(tmp_path / "x.npz") as arrays:
        difference = arrays["images"].astype(int) - sample(model, 7, steps=5)
        assert np.abs(difference).max() <= 1
        assert arrays["labels"].tolist() == model.condition(range(7)).index.tolist()


def test_a_signal_to_all_processes_leaves_a_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C on a terminal reaches the launcher and its processes, who get it from the launcher once more.

    torchrun has a code of its own for it, which is not 0; a signal that reaches the processes alone it tells by theirs.
    """
    values = {**tiny, "training.steps": 100_000, "training.checkpoint_every": 50_000, "training.preview_every": 50_000}
    values |= {"training.batch_size": 256}  # slow enough that the second signal comes before the next step's end
    with subprocess.Popen(
        [*LAUNCH, *arguments(values, tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        while process.poll() is None and not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=180)
    assert checkpoints(tmp_path), said[-2000:]
    assert "SIGINT: stopped at step" in said
    assert process.returncode != 0


def test_a_signal_to_one_process_stops_all_with_its_code(tiny: dict[str, Any], tmp_path: Path) -> None:
    """They agree on the step, write one checkpoint, and both end with 143: the launcher's report says so."""
    values = {**tiny, "training.steps": 100_000, "training.checkpoint_every": 50_000, "training.preview_every": 50_000}
    code = (
        "import os, signal, sys; from undiffuse.training import batches; from undiffuse.cli.app import main\n"
        "make = batches.make_batch\n"
        "def act(config, data, step, positions):\n"
        "    if step == 3 and os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return make(config, data, step, positions)\n"
        "batches.make_batch = act\n"
        "try: main()\n"
        "except SystemExit as end: print('ended with', end.code, flush=True); raise\n"
    )
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run(
        [*LAUNCH[:-2], str(tmp_path / "main.py"), *arguments(values, tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode != 0
    assert "SIGTERM: stopped at step 10 " in done.stdout, done.stderr[-2000:]
    assert "ended with 143" in done.stdout and "ended with 0" not in done.stdout
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000010"]


def test_two_processes_share_a_density(whole: Path, tmp_path: Path) -> None:
    """Three batches of images, two of them the first process's: the bits of one process, in order, told once."""
    images = np.random.default_rng(0).integers(0, 256, (800, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", images=images)
    options = ["--metrics", "bpd", "--data", str(tmp_path / "more.npz"), "--split", "train", "-n", "700"]
    options += ["--bound", "4", "--draws", "2", "--json", str(tmp_path / "two.json")]
    said = two("evaluate", str(whole), *options, "--report", str(tmp_path / "two.html"))
    assert said.count("bits per dim") == 1
    one = density(load(whole), str(tmp_path / "more.npz"), split="train", n=700, bound=4, draws=2)
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["conditions"]["processes"] == 2
    np.testing.assert_allclose(found["per_image"], one.per_image, rtol=0, atol=2e-4)

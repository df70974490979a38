"""What the tests share: a cache of their own, one thread, tiny data, tiny runs and how to compare them."""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # light, and the same sums in every process that the tests start

TINY = {
    "training.steps": 12,
    "training.batch_size": 16,
    "training.warmup": 2,
    "training.log_every": 2,
    "training.checkpoint_every": 3,
    "training.preview_every": 6,
    "training.precision": "fp32",  # the same on every machine
    "training.learning_rate": 1e-3,
    "network.channels": (8, 16),
    "network.attention": (),
}
Command = Callable[..., tuple[int, str, str]]
TIMING = ("seconds", "images_per_second")

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["undiffuse.training", "undiffuse.cli.app"])


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_a_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("UNDIFFUSE_DATA", raising=False)
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_exports_of_other_files(_one_thread_and_a_cache: None) -> None:
    """Which engine is chosen depends on what was exported: in this file only, whatever its process has run before."""
    shutil.rmtree(Path(os.environ["UNDIFFUSE_CACHE"]) / "onnx", ignore_errors=True)


@pytest.fixture(autouse=True)
def _random_numbers_of_its_own() -> None:
    """A test's weights depend on the test alone, and not on those that ran before it in its process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no remark said yet."""
    from undiffuse.data import remarks

    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    remarks.warn.cache_clear()


def write_data(path: Path, seed: int = 0) -> Path:
    """72 grey images of 16x16 in three classes, which differ in brightness, as .npz."""
    labels = np.arange(72) % 3
    images = np.random.default_rng(seed).integers(0, 128, (72, 16, 16)) + 60 * labels[:, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels, classes=np.array(["dark", "grey", "bright"]))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of `write_data`'s file."""
    return str(write_data(tmp_path_factory.mktemp("data") / "tiny.npz"))


@pytest.fixture(scope="session")
def tiny(data: str) -> dict[str, Any]:
    """Settings of a run of a second."""
    return {"data.source": data, **TINY}


@pytest.fixture(scope="session")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted; read only."""
    from undiffuse.training import train

    run = tmp_path_factory.mktemp("whole") / "run"
    train(tiny, run, report=ignore)
    return run


@pytest.fixture(scope="session")
def likelihood(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the preset `likelihood`, tiny; read only."""
    from undiffuse.config import preset
    from undiffuse.training import train

    run = tmp_path_factory.mktemp("likelihood") / "run"
    values = {"network.head": 8, "training.steps": 60, "training.learning_rate": 1e-2}
    train({**preset("likelihood"), **tiny, **values}, run, report=ignore)
    return run


def randomised(network: Any, size: float = 0.15) -> Any:
    """The network with noise of this size added to its weights, so that conditions and inputs matter."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=random)
    return network


def ignore(line: str) -> None:
    """A report that goes nowhere."""


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """All that a checkpoint holds and that is not the clock's: weights and training state byte by byte."""
    progress = json.loads((folder / "training.json").read_text())
    card = json.loads((folder / "model.json").read_text())
    return {
        "weights": (folder / "weights.safetensors").read_bytes(),
        "training": (folder / "training.safetensors").read_bytes(),
        "progress": {key: value for key, value in progress.items() if key not in TIMING},
        "card": {**card, "training": {key: value for key, value in card["training"].items() if key not in TIMING}},
    }


def run_state(run: Path) -> dict[str, Any]:
    """All that a run folder says, but for the clock: two runs that are the same run have the same."""
    state: dict[str, Any] = {folder.name: checkpoint_state(folder) for folder in run.glob("checkpoints/step-*")}
    state |= {picture.name: picture.read_bytes() for picture in run.glob("previews/*.png")}
    return {**state, "metrics": metrics(run)}


def in_child(target: Callable[..., None], *args: Any) -> int:
    """The exit code of `target(*args)` in a process of its own: minus the signal's number if one ended it."""
    process = _fork.Process(target=target, args=args)
    process.start()
    process.join(180)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command in this process and a folder of its own: (exit code, stdout, stderr)."""
    from undiffuse.cli.app import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undiffuse", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run

"""Low-rank adapters: the same bits at the start, merged exactly, refused where they do not belong."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, ignore
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from undiffuse.adapters import KEY, NAME, with_adapter
from undiffuse.build import make_network
from undiffuse.config import TrainingConfig, make_config
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import Model, checkpoints, load
from undiffuse.networks.lora import INFIX, add_adapters, factors, merged
from undiffuse.training import train
from undiffuse.training.muon import make_optimizer

Values = dict[str, Any]


@pytest.fixture(scope="module")
def adapted(tiny: Values, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of adapters of rank 2; read only."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    train({**tiny, "training.base": str(whole), "training.lora": 2, "training.lora_alpha": 6.0}, run, report=ignore)
    return run


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """One of each kind with random weights in float64, and an input."""
    torch.manual_seed(0)
    settings: dict[str, Values] = {
        "unet": {"network.patch": 2, "network.channels": (16, 32), "network.attention": (1,)},
        "unet2d": {
            "network.kind": "unet2d",
            "network.channels": (16, 32),
            "network.attention": (1,),
            "network.patch": 1,
            "network.options": {"norm_num_groups": 4},
        },
        "mlp": {"network.kind": "mlp", "network.patch": 1, "network.channels": (32,), "network.attention": ()},
    }
    config = make_config({**settings[kind], "denoiser.sigma_data": 0.5})
    points = kind == "mlp"
    made = make_network(config, 2, None, 0 if points else 2).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made, torch.randn(3, 2, *(() if points else (8, 8)), dtype=torch.float64)


each_kind = pytest.mark.parametrize("kind", ["unet", "unet2d", "mlp"])


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adapters_start_without_effect_and_merge_to_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    """With B = 0 the network is the plain one; with any A and B it is the plain one of the merged weights."""
    plain, x = network(kind)
    plain, x, log_snr = plain.to(dtype), x.to(dtype), torch.randn(3, dtype=dtype)
    other = copy.deepcopy(plain)
    add_adapters(other, 3, 0.7)
    assert torch.equal(other(x, log_snr), plain(x, log_snr))
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            assert INFIX in name
            nn.init.normal_(parameter, std=0.2)
    answer = other(x, log_snr)
    assert not torch.allclose(answer, plain(x, log_snr), rtol=0.1)
    weights = merged(dict(other.named_parameters()), 0.7)
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights)
    assert torch.equal(plain(x, log_snr), answer)


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_an_adapted_layer_is_the_layer_plus_two_small_ones(dims: int) -> None:
    """W x + (alpha / rank) B (A x): computed here in two steps, without W' (Hu et al. 2022, eq. 3)."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5), nn.Conv1d(6, 5, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1, stride=2))
    layer = layers[dims].double()
    x = torch.randn(4, 6, *(7 for _ in range(dims)), dtype=torch.float64)
    plain, holder = layer(x), nn.Sequential(layer)
    add_adapters(holder, 2, 3.0 / 2)
    for parameter in holder.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    a, b = factors(dict(holder.named_parameters())).values()
    if dims == 0:
        small = functional.linear(functional.linear(x, a), b)
    else:
        convolve = (functional.conv1d, functional.conv2d)[dims - 1]
        inner = convolve(x, a.view(2, 6, *(3 for _ in range(dims))), padding=1, stride=dims)
        small = convolve(inner, b.view(5, 2, *(1 for _ in range(dims))))
    torch.testing.assert_close(holder(x), plain + 1.5 * small, rtol=0, atol=1e-12)


def test_a_run_trains_the_adapters_alone_and_saves_them_merged(whole: Path, adapted: Path) -> None:
    """The base's weights stay in the checkpoint; the model is them plus 3 B A, of the averages of A and B."""
    base, model = load(whole).network.state_dict(), load(adapted)
    saved = load_file(checkpoints(adapted)[-1] / "training.safetensors")
    adapter = load_file(checkpoints(adapted)[-1] / NAME)
    assert model.training["base"]["name"] == str(whole)
    moved = 0
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A" not in adapter:
            assert torch.equal(model.network.state_dict()[name], tensor)
            continue
        a, b = (adapter.pop(f"{layer}.lora_{factor}") for factor in "AB")
        assert torch.equal(saved[f"network.{layer}{INFIX}original"], tensor)
        assert torch.equal(a, saved[f"average.{layer}{INFIX}0.A"])
        expected = tensor.double() + 3 * (b.double() @ a.double()).view_as(tensor)
        torch.testing.assert_close(model.network.state_dict()[name].double(), expected, rtol=0, atol=1e-6)
        moved += bool(b.any())
    assert not adapter and moved > 10
    assert set(model.network.state_dict()) == set(base)


def test_an_adapter_file_and_its_base_are_the_model(whole: Path, adapted: Path) -> None:
    """The same fingerprint, and so the same samples, as the run's own merged folder."""
    path = checkpoints(adapted)[-1] / NAME
    model = with_adapter(load(whole), path)
    assert model.fingerprint == load(adapted).fingerprint
    assert path.stat().st_size < (checkpoints(adapted)[-1] / "training.safetensors").stat().st_size / 2


@pytest.mark.parametrize("augment", [0.0, 0.2])
def test_new_classes_are_learnt_in_full_beside_adapters(
    tiny: Values, whole: Path, tmp_path: Path, augment: float
) -> None:
    """Another encoder, and that of augmentation labels, are in the adapter's file as they are."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(40) % 2, classes=np.array(["a", "b"]))
    values = {"data.source": str(tmp_path / "x.npz"), "training.base": str(whole), "training.lora": 2}
    train({**tiny, **values, "data.augment": augment}, tmp_path / "run", report=ignore)
    path = checkpoints(tmp_path / "run")[-1] / NAME
    whole_tensors = {name for name in load_file(path) if "lora_" not in name}
    assert whole_tensors == {"conditioning.label.weight"} | ({"conditioning.augmentation.weight"} if augment else set())
    label = load_file(path)["conditioning.label.weight"]
    assert label.shape[0] == 3 and not torch.equal(label[0], label[1])
    assert with_adapter(load(whole), path).fingerprint == load(tmp_path / "run").fingerprint


def _damage(path: Path, change: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_B"))
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["stem.lora_C"] = torch.zeros(1)
    elif change == "shape":
        tensors[name] = tensors[name][1:].contiguous()
    elif change == "card":
        about = json.loads(metadata[KEY])
        metadata[KEY] = json.dumps({**about, "card": {**about["card"], "format": "x"}})
    else:
        metadata = {}
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "it lacks .*lora_B"),
        ("unexpected", r"it has stem\.lora_C besides"),
        ("shape", "damaged"),
        ("card", "damaged or not a model"),
        ("metadata", "is no adapter of undiffuse"),
    ],
)
def test_a_damaged_adapter_is_refused(whole: Path, adapted: Path, tmp_path: Path, change: str, message: str) -> None:
    """Every key must land, and nothing else may be there."""
    path = tmp_path / NAME
    shutil.copy(checkpoints(adapted)[-1] / NAME, path)
    _damage(path, change)
    with pytest.raises(UndiffuseError, match=message):
        with_adapter(load(whole), path)


def test_an_adapter_of_another_base_is_refused(adapted: Path, likelihood: Path, tmp_path: Path) -> None:
    path = checkpoints(adapted)[-1] / NAME
    with pytest.raises(UsageError, match="give the base that the adapter was trained on"):
        with_adapter(load(adapted), path)
    with pytest.raises(UndiffuseError, match=r"cannot read .*none"):
        with_adapter(load(adapted), tmp_path / "none")


def test_tuned_grids_do_not_make_another_base(whole: Path, adapted: Path) -> None:
    base = load(whole)
    tuned: Model = dataclasses.replace(base, grids={"ddim:2": (0.0,)})
    assert tuned.fingerprint != base.fingerprint
    assert with_adapter(tuned, checkpoints(adapted)[-1] / NAME).fingerprint == load(adapted).fingerprint


def test_merge_writes_the_model_that_the_run_has(
    command: Command, whole: Path, likelihood: Path, adapted: Path, tmp_path: Path
) -> None:
    """The same folder as the checkpoint's, but for the record; and one line where it cannot be."""
    path = checkpoints(adapted)[-1] / NAME
    assert command("merge", whole, path, "--out", "mine")[0] == 0
    assert (tmp_path / "mine/weights.safetensors").read_bytes() == (path.parent / "weights.safetensors").read_bytes()
    assert load(tmp_path / "mine").fingerprint == load(adapted).fingerprint
    code, _, error = command("merge", likelihood, path, "--out", "other")
    assert code == 2 and error.count("\n") == 1 and "give the base that the adapter was trained on" in error
    code, _, error = command("merge", whole, path, "--out", "mine")
    assert code == 2 and error.count("\n") == 1 and "--force" in error
    assert not (tmp_path / "other").exists()


def test_adamw_takes_the_factors() -> None:
    """Also where the run has Muon: its updates are for whole matrices."""
    made, _ = network("unet")
    add_adapters(made, 16)
    assert type(make_optimizer(TrainingConfig(lora=16), made)) is torch.optim.AdamW

"""Networks of undiffuse in pipelines of half precision."""

import dataclasses
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import diffusers, make_unet, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from undiffuse.build import make_denoiser
from undiffuse.interop.diffusers import export_diffusers, import_diffusers
from undiffuse.model import load
from undiffuse.networks import first_name

import_module("undiffuse.interop.adapter")  # as whoever loads a folder with it must
ROUNDING = {torch.float16: 3e-3, torch.bfloat16: 2.4e-2}  # six units in the last place, 2^-11 and 2^-8
EDM = {"target": "edm", "sigma_data": 0.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters: of a network as most are, of one that weighs values, and of one that looks up steps of its table."""
    place = tmp_path_factory.mktemp("adapters")
    theirs = load(import_diffusers(save(place / "pipeline", make_unet(num_class_embeds=3)), place / "model"))
    config = theirs.config.model_copy(update={"denoiser": theirs.config.denoiser.model_copy(update=EDM)})
    steps = dataclasses.replace(theirs, config=config, denoiser=make_denoiser(config, theirs.network))
    models = {"plain": load("fashion-mnist"), "values": load("fashion-mnist-likelihood"), "steps": steps}
    return {name: export_diffusers(model, place / name) for name, model in models.items()}


def answers(pipeline: Any, dtype: torch.dtype) -> Tensor:
    """v of one x at five noise levels, a timestep for each sample, without a class and with one."""
    unet = pipeline.unet
    size = unet.config.sample_size
    x = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.tensor([1, 0, 1, 0, 1]) if unet.config.card["data"]["classes"] else None
    timesteps = torch.tensor([0, 30, 400, 401, 900])
    with torch.no_grad():
        found = [unet(x.expand(5, -1, -1, -1), timesteps, given, return_dict=False)[0] for given in (None, labels)]
        alone = unet(x, 400).sample
    assert {v.dtype for v in found} == {dtype}
    assert (alone - found[0][2:3]).abs().max() < 5 * ROUNDING.get(dtype, 1e-5)
    return torch.cat(found).double()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", ["plain", "values", "steps"])
def test_half_precision_is_the_same_but_for_rounding(name: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """Converted or loaded so, at every noise level, and in a whole pipeline."""
    full = diffusers.DDIMPipeline.from_pretrained(folders[name])
    wanted = answers(full, torch.float32)
    converted = diffusers.DDIMPipeline.from_pretrained(folders[name]).to(dtype)
    loaded = diffusers.DDIMPipeline.from_pretrained(folders[name], dtype=dtype)
    for pipeline in (converted, loaded, converted.to("cpu")):
        pipeline.enable_attention_slicing()
        assert pipeline.unet.dtype == dtype
        error = (answers(pipeline, dtype) - wanted).square().mean((1, 2, 3)).sqrt()
        assert (error < ROUNDING[dtype] * wanted.std()).all() and error.max() > 0
    drawn = []
    for pipeline in (full, loaded):
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(1)
        drawn.append(pipeline(generator=noise, num_inference_steps=3, output_type="pt").images.float())
    assert (drawn[0] - drawn[1]).abs().mean() < 0.01 < drawn[0].std()


def test_what_tells_the_noise_level_is_not_rounded(folders: dict[str, Path]) -> None:
    """Buffers, and the modules that must be exact, are those of before, in half precision and after it."""
    for name, kept in (("plain", set()), ("steps", set()), ("values", {"head", "values"})):
        full = diffusers.DDPMPipeline.from_pretrained(folders[name]).unet.network
        loaded = diffusers.DDPMPipeline.from_pretrained(folders[name], dtype=torch.bfloat16)
        converted = diffusers.DDPMPipeline.from_pretrained(folders[name]).to(torch.bfloat16)
        for pipeline in (loaded, converted, converted.to(torch.float32)):
            network = pipeline.unet.network
            for (_, a), (_, b) in zip(full.named_buffers(), network.named_buffers(), strict=True):
                assert torch.equal(a, b)
            for (key, a), (_, b) in zip(full.named_parameters(), network.named_parameters(), strict=True):
                exact = key.split(".")[0] in kept
                assert torch.equal(b.float(), a if exact else a.bfloat16().float()), key


def test_beyond_the_range_of_float16(folders: dict[str, Path]) -> None:
    """Where activations leave float16, at almost no signal, the answer is float32's, not NaN."""
    full = diffusers.DDIMPipeline.from_pretrained(folders["values"]).unet
    half = diffusers.DDIMPipeline.from_pretrained(folders["values"]).to(torch.float16).unet
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    largest = []
    full.network.up[-1].register_forward_hook(lambda module, inputs, output: largest.append(output.abs().max()))
    with torch.no_grad():
        wanted, got = full(x, 997).sample, half(x.half(), 997).sample
    assert largest[0] > 65504 and (got - wanted).abs().max() < 8e-3 < wanted.std()


def test_adapters_of_version_0_1_are_loaded_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights under the names they then had come to their places, in the U-Net that reads values."""
    shutil.copytree(folders["values"], tmp_path / "old")
    path = tmp_path / "old" / "unet" / "diffusion_pytorch_model.safetensors"
    renamed = {first_name(name): tensor for name, tensor in load_file(path).items()}
    assert "network.values.census.0.weight" in renamed
    save_file(renamed, path, metadata={"format": "pt"})
    full, loaded = (diffusers.DDPMPipeline.from_pretrained(one).unet for one in (folders["values"], tmp_path / "old"))
    for (name, a), (_, b) in zip(full.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b), name

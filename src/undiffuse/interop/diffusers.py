"""Model folders of diffusers: a `UNet2DModel` with its scheduler, read and written without diffusers.

Its timestep k is our step k + 1, time (k + 1) / T. Where a network of ours is not a `UNet2DModel`, the folder holds it
as `undiffuse.interop.adapter.Adapter`, which diffusers' pipelines run where undiffuse is installed too.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from undiffuse.build import default_network, make_denoiser, make_network, make_options, make_process, step_log_snrs
from undiffuse.config import Config, make_config
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_folder, read_json, write_json
from undiffuse.model import DataFacts, Model, with_process, write_model
from undiffuse.networks import UNet2D
from undiffuse.process import Table

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.42.1"  # of diffusers: the one whose options are written
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "sigmoid": "sigmoid",
    "squaredcos_cap_v2": "cosine",
}
SCHEDULERS = (
    "DDPM",
    "DDIM",
    "PNDM",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "UniPCMultistep",
)
"""Schedulers that differ in how they sample: what was trained is in the betas and the prediction type."""
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention layers as early versions of diffusers called them."""
PLACED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "dropout",
    "num_class_embeds",
    "num_train_timesteps",
)
"""Keys of a `UNet2DModel`'s configuration that are no option of ours: the rest of it is."""


def import_diffusers(folder: str | Path, out: str | Path) -> Path:
    """A model folder `out` from a pipeline folder of diffusers, or from a `UNet2DModel`'s own with a scheduler or none.

    Raises UsageError for what has no counterpart here, UndiffuseError for a damaged folder.
    """
    folder, out = Path(folder), _new(out)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: download the model first, and give the folder with model_index.json")
    _check_pipeline(folder)
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    unet, scheduler = _read(home / "config.json"), _scheduler(folder)
    try:
        config, data = _config(folder.resolve().name, unet, scheduler)
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UndiffuseError(f"{home}/config.json or its scheduler's is incomplete or damaged: {error}") from error
    default_network(config.network, data.shape[:2])  # refuse a size that its levels cannot halve
    network = make_network(config, data.shape[2], len(data.classes))
    make_denoiser(config, network)  # refuse what does not go together
    try:
        network.load_state_dict(_weights(home))
    except (AttributeError, OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UndiffuseError(f"{home} does not hold the weights that its config.json describes: {reason}") from error
    training = {
        "imported": {
            "folder": data.name,
            "diffusers": unet.get("_diffusers_version"),
            "scheduler": {key: value for key, value in scheduler.items() if key != "trained_betas"},
        }
    }
    with atomic_folder(out) as temporary:
        write_model(temporary, config, data, training, network.state_dict())
    return out


def _new(out: str | Path) -> Path:
    if Path(out).exists():
        raise UsageError(f"{out} exists already: choose another --out, or move it away")
    return Path(out)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(f"{path} is missing: {path.parent} is not the folder of a diffusers model")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UndiffuseError(f"{path} is damaged: it holds no table of settings")
    return content


def _check_pipeline(folder: Path) -> None:
    """Refuses pipelines that are more than a U-Net and a scheduler."""
    if (folder / "model_index.json").exists():
        parts = {name for name, value in _read(folder / "model_index.json").items() if isinstance(value, list)}
        if more := sorted(parts - {"unet", "scheduler"}):
            raise UsageError(
                f"{folder} has {', '.join(more)} too: only models of pixels, a unet and a scheduler, are read"
            )


def _scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration; without one, DDPM's defaults."""
    places = (folder / "scheduler", folder, folder.resolve().parent / "scheduler")  # the last for a pipeline's unet
    path = next(
        (place / "scheduler_config.json" for place in places if (place / "scheduler_config.json").exists()), None
    )
    if path is None:
        if (folder / "model_index.json").exists():
            raise UsageError(f"{folder} has no scheduler_config.json: it is not complete")
        return {"_class_name": "DDPMScheduler"}
    scheduler = _read(path)
    name = str(scheduler.get("_class_name"))
    if name.removesuffix("Scheduler") not in SCHEDULERS:
        raise UsageError(f"{path} is of a {name}, which is not read; known are {', '.join(SCHEDULERS)} (...Scheduler)")
    return scheduler


def _config(name: str, unet: dict[str, Any], scheduler: dict[str, Any]) -> tuple[Config, DataFacts]:
    kind = unet.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise UsageError(f"the network of {name} is of class {kind}: only a UNet2DModel is read")
    size, channels = unet["sample_size"], unet.get("in_channels", 3)
    if size is None:
        raise UsageError(f"sample_size of {name} is null: write the side of its images into config.json")
    height, width = (size, size) if isinstance(size, int) else map(int, size)
    learned = scheduler.get("variance_type") == "learned_range"
    outputs = unet.get("out_channels", 3)
    if channels not in (1, 3) or outputs != channels * (2 if learned else 1):
        raise UsageError(
            f"in_channels = {channels}, out_channels = {outputs} of {name}: images here have 1 or 3 channels, and "
            "as many come out (twice as many with variance_type learned_range)"
        )
    target = scheduler.get("prediction_type", "epsilon")
    if target not in TARGETS:
        raise UsageError(f"prediction_type = {target} of {name} is not read: known are {', '.join(TARGETS)}")
    options = {key: value for key, value in unet.items() if key not in PLACED and not key.startswith("_")}
    config = make_config(
        {
            "data.source": name,
            "data.size": height if height == width else None,
            "data.channels": channels,
            **_process(scheduler),
            "denoiser.target": TARGETS[target],
            "denoiser.sigma_data": 1.0,  # the network gets x_t as it is
            "denoiser.learned_variance": learned,
            "network.kind": "unet2d",
            "network.patch": 1,
            "network.channels": unet["block_out_channels"],
            "network.blocks": unet["layers_per_block"],
            "network.attention": _attention(unet["down_block_types"], unet["up_block_types"]),
            "network.dropout": unet.get("dropout", 0.0),
            "network.options": make_options(options).model_dump(exclude_defaults=True),
        }
    )
    count = unet.get("num_class_embeds") or 0
    classes = tuple(str(k) for k in range(count))
    return config, DataFacts(name, (height, width, channels), 0, classes, (1 / count,) * count if count else ())


def _attention(down: list[str], up: list[str]) -> list[int]:
    """The levels with attention."""
    kinds = [kind.removeprefix("UNetRes") for kind in down]
    for kind in kinds:
        if kind not in ("DownBlock2D", "AttnDownBlock2D"):
            raise UsageError(f"down_block_types has {kind}: only DownBlock2D and AttnDownBlock2D are read")
    mirrored = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    if [kind.removeprefix("UNetRes") for kind in up] != mirrored:
        raise UsageError(f"up_block_types = {', '.join(up)}: only the mirror of down_block_types is read")
    return [level for level, kind in enumerate(kinds) if kind.startswith("Attn")]


def _process(scheduler: dict[str, Any]) -> dict[str, Any]:
    """Settings of `process` for a scheduler's betas: by name, or the list that it holds."""
    rescaled = {"process.zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr"))}
    if scheduler.get("trained_betas") is not None:
        return {"process.schedule": "betas", "process.betas": list(scheduler["trained_betas"]), **rescaled}
    name, steps = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps", 1000)
    start, end = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    if name not in SCHEDULES:
        raise UsageError(f"beta_schedule = {name} is not read: known are {', '.join(SCHEDULES)} and trained_betas")
    settings = {"process.schedule": SCHEDULES[name], "process.steps": steps, **rescaled}
    if name != "squaredcos_cap_v2":
        if end > 0.999:
            raise UsageError(f"beta_end = {end}: betas by name end at 0.999 here; write them out as trained_betas")
        scale = 1000 / steps  # which our schedules multiply their ends by
        settings["process.options"] = {"beta_min": start / scale, "beta_max": end / scale}
    return settings


def _weights(home: Path) -> dict[str, Tensor]:
    index = home / f"{WEIGHTS}.index.json"
    if (home / WEIGHTS).exists():
        files = [home / WEIGHTS]
    elif index.exists():
        files = [home / Path(name).name for name in sorted(set(_read(index).get("weight_map", {}).values()))]
    elif pickles := sorted(home.glob("*.bin")):
        raise UsageError(
            f"{pickles[0]} is a pickle, which can run code when it is read and so is not; convert it where you trust "
            f"it: diffusers.UNet2DModel.from_pretrained({str(home)!r}).save_pretrained({str(home)!r})"
        )
    else:
        raise UsageError(f"{home} has no {WEIGHTS}: the weights are missing")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    legacy = re.compile(rf"(?<=\.)({'|'.join(RENAMED)})(?=\.(weight|bias)$)")
    return {legacy.sub(lambda match: RENAMED[match[1]], name): tensor for name, tensor in weights.items()}


def needs_adapter(model: Model) -> str | None:
    """Why the model cannot be a `UNet2DModel` with a scheduler of diffusers, or None where it can."""
    denoiser, network = model.config.denoiser, model.config.network
    if network.kind != "unet2d":
        return "its network is not a UNet2DModel (network.kind=unet)"
    if denoiser.target not in TARGETS.values():
        return f"diffusers knows no denoiser.target={denoiser.target}, only {', '.join(TARGETS.values())}"
    if denoiser.sigma_data != 1:
        return f"its input is scaled for denoiser.sigma_data={denoiser.sigma_data:g}, and diffusers scales for 1"
    return None


def export_diffusers(model: Model, out: str | Path) -> Path:
    """A pipeline folder `out`, which DDPMPipeline and DDIMPipeline of diffusers load.

    With the adapter where `needs_adapter` says so. DDIM's samples are ours (threshold="clip", grid="trailing") with
    use_clipped_model_output=True, for numbers of steps that divide T.
    """
    out, adapted, network = _new(out), needs_adapter(model) is not None, model.network
    if not isinstance(model.denoiser.process.schedule, Table):
        model = with_process(model, schedule="cosine")  # its network is told the log-SNR, whatever the process
    table = model.denoiser.process.schedule
    assert isinstance(table, Table)
    if isinstance(network, UNet2D) and not torch.equal(network.log_snr.cpu(), step_log_snrs(table)):
        raise UsageError(f"{model.name} was put on another process than its network counts steps of: export the model")
    target = "v" if adapted else model.config.denoiser.target
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        **_named(table),
        "prediction_type": next(name for name, ours in TARGETS.items() if ours == target),
        "variance_type": "learned_range" if model.config.denoiser.learned_variance and not adapted else "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }
    home = ["undiffuse.interop.adapter", "Adapter"] if adapted else ["diffusers", "UNet2DModel"]
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": home,
    }
    weights = {f"network.{name}" if adapted else name: w.contiguous() for name, w in network.state_dict().items()}
    with atomic_folder(out) as temporary:
        for name in ("unet", "scheduler"):
            (temporary / name).mkdir()
        write_json(temporary / "model_index.json", index)
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        write_json(temporary / "unet" / "config.json", _unet_config(model, adapted))
        save_file(weights, temporary / "unet" / WEIGHTS, {"format": "pt"})
    return out


def _named(table: Table) -> dict[str, Any]:
    """A scheduler's betas: by name where `_process` makes just these of it, else one by one."""
    first, last = table.betas[0].item(), table.betas[-1].item()
    for name in SCHEDULES if last <= 0.999 else ():
        named = {"num_train_timesteps": table.steps, "beta_schedule": name, "beta_start": first, "beta_end": last}
        same = make_process(make_config(_process(named)).process).schedule
        if isinstance(same, Table) and torch.allclose(same.betas, table.betas, rtol=1e-12, atol=0):
            return named
    return {"num_train_timesteps": table.steps, "trained_betas": table.betas.tolist()}


def _unet_config(model: Model, adapted: bool) -> dict[str, Any]:
    """What `UNet2DModel`, or the adapter, is constructed from."""
    height, width, channels = model.data.shape
    network = model.config.network
    shared = {
        "_class_name": "Adapter" if adapted else "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if model.config.denoiser.learned_variance and not adapted else 1),
    }
    if adapted:
        return shared | {
            "card": {"config": model.config.model_dump(mode="json"), "data": dataclasses.asdict(model.data)}
        }
    assert network.channels and network.attention is not None
    kinds = [
        "AttnDownBlock2D" if level in network.attention else "DownBlock2D" for level in range(len(network.channels))
    ]
    return shared | {
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "block_out_channels": network.channels,
        "layers_per_block": network.blocks,
        "dropout": network.dropout,
        "num_class_embeds": len(model.data.classes) or None,
        **make_options(network.options).model_dump(),
    }

"""Model folders of diffusers: a `UNet2DModel` with its scheduler, read and written without diffusers.

Its timestep k is our step k + 1, time (k + 1) / T. If a network of ours is not a `UNet2DModel`, the folder holds it
as `undiffuse.interop.adapter.Adapter`, which diffusers' pipelines run if undiffuse is installed too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from undiffuse.build import (
    default_network,
    make_denoiser,
    make_network,
    make_options,
    make_process,
    network_shapes,
    step_log_snrs,
)
from undiffuse.config import Config, make_config
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_folder, write_json
from undiffuse.interop.scheduler import SCHEDULES, TARGETS, Scheduler, Settings, find_scheduler, process_of
from undiffuse.interop.tables import read_table
from undiffuse.interop.weights import FLOATS, WEIGHTS, check_shapes, find_weights, read_headers, read_weights
from undiffuse.model import DataFacts, Model, pictures_only, with_process, write_model
from undiffuse.names import cut, fault, listed, shown
from undiffuse.networks import UNet2D
from undiffuse.process import Table

VERSION = "0.42.1"  # of diffusers, whose options are written
OF_THE_AVERAGE = {
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
}
"""What diffusers' EMAModel adds to a network's configuration."""
PLACED = {"num_train_timesteps"}  # in early versions; now in the scheduler
LARGEST_SIDE = 4096
Count = Annotated[int, Field(ge=1, le=65_536)]


class _Described(BaseModel):
    """The keys of a `UNet2DModel`'s configuration that are not `network.options` here."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    sample_size: int | list[Any] | None
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: list[str]
    up_block_types: list[str]
    block_out_channels: list[Count]
    layers_per_block: Count
    dropout: float = Field(0.0, ge=0, lt=1)
    num_class_embeds: int | None = Field(None, ge=0, le=65_536)


def import_diffusers(
    folder: str | Path,
    out: str | Path,
    scheduler: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes a model folder `out` from a diffusers pipeline folder, a `UNet2DModel` folder, or a training checkpoint-N.

    Args:
        scheduler: the file, or its folder, of the scheduler it was trained with; None: what `find_scheduler` finds.
        report: called with lines on what was found and used.

    Raises UsageError for models without a counterpart here, UndiffuseError for a damaged folder.
    """
    folder, out = Path(folder), _new(out)
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder: download the model first, and give the folder with model_index.json"
        )
    _check_pipeline(folder)
    home = _home(folder)
    content = read_table(home / "config.json")
    found = find_scheduler(home, None if scheduler is None else Path(scheduler))
    path = find_weights(home)
    held = read_headers(path)
    config, data = _config(folder.resolve().name, home, content, found.settings, len(held))
    default_network(config.network, data.shape[:2])  # refuse a size that its stages cannot halve
    check_shapes(home, network_shapes(config, data.shape[2], data.takes), held)  # before anything is allocated
    network = make_network(config, data.shape[2], data.takes)
    network.load_state_dict(read_weights(held))
    make_denoiser(config, network)  # refuse inconsistent settings
    training = {
        "imported": {
            "folder": data.name,
            "diffusers": content.get("_diffusers_version"),
            "scheduler": {key: value for key, value in found.content.items() if key != "trained_betas"},
        }
    }
    with atomic_folder(out) as temporary:
        write_model(temporary, config, data, training, network.state_dict())
    for line in _found(folder, home, found, path, {FLOATS[stored.kind] for stored in held.values()}):
        report(line)
    return out


def _found(folder: Path, home: Path, scheduler: Scheduler, weights: Path, kinds: set[str]) -> Iterator[str]:
    """What the user should know about where a model came from."""
    average, last = folder / "unet_ema", folder / "unet"
    if home == average:
        yield f"{home}: the averaged weights (EMA)" + f"; the last ones are in {last}" * last.is_dir()
    elif average.is_dir():
        yield f"{home}: the weights that model_index.json names; averaged ones (EMA) are in {average}"
    if weights.name not in (WEIGHTS, f"{WEIGHTS}.index.json") or kinds != {"float32"}:
        yield f"{weights}: {' and '.join(sorted(kinds))}" + ", kept as float32" * (kinds != {"float32"})
    yield f"{scheduler.path}: {scheduler}"
    if scheduler.of_sampling:
        yield f"{scheduler.path}: {scheduler.of_sampling}"


def _new(out: str | Path) -> Path:
    if Path(out).exists():
        raise UsageError(f"{out} exists already: choose another --out, or move it away")
    return Path(out)


def _check_pipeline(folder: Path) -> None:
    """Refuses pipelines that are more than a U-Net and a scheduler."""
    if (folder / "model_index.json").exists():
        index = read_table(folder / "model_index.json")
        parts = {name for name, value in index.items() if isinstance(value, list) and any(value)}  # [null, null]: none
        if more := sorted(parts - {"unet", "scheduler"}):
            raise UsageError(
                f"{folder} has {listed(more)} too: only models of pixels, with a unet and a scheduler, are read"
            )


def _home(folder: Path) -> Path:
    """The folder of the network: `folder` or one in it, that of the average unless a pipeline names another."""
    network, average = folder / "unet", folder / "unet_ema"
    home = network if network.is_dir() else folder
    if average.is_dir() and not (home == network and (folder / "model_index.json").exists()):
        home = average
    if not (home / "config.json").exists():
        checkpoints = sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir())
        hint = f"; give one of its {', '.join(checkpoints[-3:])}" if checkpoints else ""
        raise UsageError(f"{home}/config.json is missing: {home} is not the folder of a diffusers model{hint}")
    return home


def _config(
    name: str, home: Path, content: dict[str, Any], trained: dict[str, Any], tensors: int
) -> tuple[Config, DataFacts]:
    """The configuration and the data of a network with `tensors` weights."""
    kind = content.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise UsageError(f"the network of {name} is of class {cut(str(kind))}: only a UNet2DModel is read")
    try:
        unet = _Described.model_validate({k: v for k, v in content.items() if k in _Described.model_fields})
    except ValidationError as error:
        raise UndiffuseError(f"{home}/config.json is incomplete or damaged: {fault(error)}") from None
    height, width = _sides(name, unet.sample_size)
    if unet.layers_per_block * len(unet.block_out_channels) > tensors:  # before anything is built
        raise UndiffuseError(f"{home} holds fewer weights than {unet.layers_per_block} layers_per_block need")
    learned, channels, outputs = trained["denoiser.learned_variance"], unet.in_channels, unet.out_channels
    if channels not in (1, 3) or outputs != channels * (2 if learned else 1):
        raise UsageError(
            f"in_channels = {channels}, out_channels = {outputs} of {name}: images here have 1 or 3 channels, and "
            "as many outputs (twice as many with variance_type learned_range)"
        )
    ours = unet.model_fields_set | PLACED | OF_THE_AVERAGE
    options = make_options({key: v for key, v in content.items() if key not in ours and not key.startswith("_")})
    config = make_config(
        {
            "data.source": name,
            "data.size": height if height == width else None,
            "data.channels": channels,
            **trained,
            "denoiser.sigma_data": 1.0,  # the network gets x_t unscaled
            "network.kind": "unet2d",
            "network.patch": 1,
            "network.channels": unet.block_out_channels,
            "network.blocks": unet.layers_per_block,
            "network.attention": _attention(unet),
            "network.dropout": unet.dropout,
            "network.options": options.model_dump(exclude_defaults=True),
        }
    )
    count = unet.num_class_embeds or 0
    classes = tuple(str(k) for k in range(count))
    return config, DataFacts(name, (height, width, channels), 0, classes, (1 / count,) * count if count else ())


def _sides(name: str, size: int | list[Any] | None) -> tuple[int, int]:
    """(height, width) of a sample_size."""
    if size is None:
        raise UsageError(f"sample_size of {name} is null: write the side of its images into config.json")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
        raise UsageError(
            f"sample_size = {shown(size)} of {name}: must be a side or [height, width], from 1 to {LARGEST_SIDE} pixels"
        )
    return sides[0], sides[1]


def _attention(unet: _Described) -> list[int]:
    """The stages with attention."""
    kinds = [kind.removeprefix("UNetRes") for kind in unet.down_block_types]
    for kind in kinds:
        if kind not in ("DownBlock2D", "AttnDownBlock2D"):
            raise UsageError(f"down_block_types has {cut(kind)}: only DownBlock2D and AttnDownBlock2D are read")
    if len(kinds) != len(unet.block_out_channels):
        raise UsageError(f"down_block_types has {len(kinds)} stages, block_out_channels {len(unet.block_out_channels)}")
    mirrored = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    if [kind.removeprefix("UNetRes") for kind in unet.up_block_types] != mirrored:
        said = ", ".join(unet.up_block_types)
        raise UsageError(f"up_block_types = {cut(said)}: only the mirror of down_block_types is read")
    return [stage for stage, kind in enumerate(kinds) if kind.startswith("Attn")]


def needs_adapter(model: Model) -> str | None:
    """Why the model cannot be a `UNet2DModel` with a scheduler of diffusers, or None if it can."""
    denoiser, network = model.config.denoiser, model.config.network
    if network.kind != "unet2d":
        return "its network is not a UNet2DModel (network.kind=unet)"
    if denoiser.target not in TARGETS.values():
        return f"diffusers does not support denoiser.target={denoiser.target}, only {', '.join(TARGETS.values())}"
    if denoiser.sigma_data != 1:
        return f"its input is scaled for denoiser.sigma_data={denoiser.sigma_data:g}, and diffusers scales for 1"
    return None


def export_diffusers(model: Model, out: str | Path) -> Path:
    """Writes a pipeline folder `out`, which DDPMPipeline and DDIMPipeline of diffusers load.

    Uses the adapter if `needs_adapter` gives a reason. DDIM gives our samples (threshold="clip", grid="trailing") with
    use_clipped_model_output=True, for numbers of steps that divide T.
    """
    pictures_only(model, "export")
    if model.config.network.jumps:
        raise UsageError(f"{model.name} is a flow map, which diffusers does not have: export its teacher")
    out, adapted, network = _new(out), needs_adapter(model) is not None, model.network
    if not isinstance(model.denoiser.process.schedule, Table):
        model = with_process(model, schedule="cosine")  # its network takes the log-SNR, whatever the process
    if model.data.condition is not None:
        raise UsageError(
            f"diffusers supports only labels as conditions, and {model.name} takes {model.data.condition.kind}"
        )
    table = model.denoiser.process.schedule
    assert isinstance(table, Table)
    if isinstance(network, UNet2D) and not torch.equal(network.log_snr.cpu(), step_log_snrs(table)):
        raise UsageError(
            f"{model.name} has another process than the one whose steps its network counts: export the model"
        )
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
    """A scheduler's betas: by name if `process_of` gives exactly these for it, else one by one."""
    first, last = table.betas[0].item(), table.betas[-1].item()
    for name in SCHEDULES if last <= 0.999 else ():
        named = {"num_train_timesteps": table.steps, "beta_schedule": name, "beta_start": first, "beta_end": last}
        same = make_process(make_config(process_of(Settings.model_validate(named))).process).schedule
        if isinstance(same, Table) and torch.allclose(same.betas, table.betas, rtol=1e-12, atol=0):
            return named
    return {"num_train_timesteps": table.steps, "trained_betas": table.betas.tolist()}


def _unet_config(model: Model, adapted: bool) -> dict[str, Any]:
    """The configuration from which `UNet2DModel`, or the adapter, is constructed."""
    if model.data.domain != "pictures":
        raise UsageError(
            f"{model.name} makes {model.domain.noun}: the export to diffusers supports only models of pictures"
        )
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
        return shared | {"card": {"config": model.config.model_dump(mode="json"), "data": model.data.to_json()}}
    assert network.channels and network.attention is not None
    kinds = [
        "AttnDownBlock2D" if stage in network.attention else "DownBlock2D" for stage in range(len(network.channels))
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

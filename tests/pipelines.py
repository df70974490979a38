"""Folders of diffusers for the tests."""

from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def make_unet(attention: tuple[int, ...] = (1,), **options: Any) -> Any:
    """A small `UNet2DModel` with random weights, none of them zero."""
    channels = options.setdefault("block_out_channels", (8, 16))
    kinds = ["AttnDownBlock2D" if level in attention else "DownBlock2D" for level in range(len(channels))]
    torch.manual_seed(0)
    given = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
    return diffusers.UNet2DModel(**{**given, **options}).eval()


def save(folder: Path, unet: Any | None = None, **scheduler: Any) -> Path:
    """A pipeline's folder."""
    scheduler = diffusers.DDPMScheduler(**scheduler)
    diffusers.DDPMPipeline(unet or make_unet(), scheduler).save_pretrained(folder)
    return folder

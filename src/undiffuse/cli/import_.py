"""`undiffuse import`."""

import re
from pathlib import Path

import typer

from undiffuse.cli.console import FORCE, say
from undiffuse.names import command

PARTS = re.compile(r"(model|grids)\.json|weights\.safetensors")


def import_(
    folder: Path = typer.Argument(..., help="A folder of diffusers: a pipeline, a UNet2DModel, or a checkpoint-N."),
    out: Path = typer.Option(..., "--out", "-o", help="The model folder to write."),
    force: bool = FORCE,
    scheduler: Path = typer.Option(
        None, help="The scheduler it was trained with: scheduler_config.json or its folder [in or near FOLDER]."
    ),
) -> None:
    """Convert a FOLDER of diffusers to a model of undiffuse. Pickled weights (.bin) are never opened.

    \b
    Examples:
      undiffuse import ~/ddpm-cifar10-32 --out models/cifar
      undiffuse import out/checkpoint-500 --out models/average    # from a training script; its unet_ema, if it has one
      undiffuse import unet --scheduler ~/ddpm-cifar10-32/scheduler --out models/bare
      undiffuse sample models/cifar --sampler ddim --steps 50
    """
    from undiffuse import output
    from undiffuse.card import read_card
    from undiffuse.interop.diffusers import import_diffusers

    output.claim_folder("--out", out, force)
    written = output.put_folder(out, lambda path: import_diffusers(folder, path, scheduler, say), PARTS, force)
    config, data, *_ = read_card(written)
    height, width, channels = data.shape
    say(f"{written}: images of {height}x{width}x{channels}, {config.process.schedule}, {config.denoiser.target}")
    say(f"next: {command('sample', written)}")

"""`undiffuse export`."""

from pathlib import Path

import typer

from undiffuse.cli.console import say
from undiffuse.errors import UsageError


def export(
    model: str = typer.Argument(..., help="A run folder, a model folder or a built-in name."),
    out: Path = typer.Option(..., "--out", "-o", help="What to write."),
    format: str = typer.Option("diffusers", help="diffusers (a pipeline folder) or onnx."),
) -> None:
    """Write MODEL for other programs.

    \b
    Examples:
      undiffuse export runs/emoji --format diffusers --out emoji-diffusers
      undiffuse export fashion-mnist --format onnx --out fashion-mnist.onnx
    """
    if format not in ("diffusers", "onnx"):
        raise UsageError(f"no format {format!r}: choose from diffusers, onnx")
    from undiffuse.model import load

    loaded = load(model, "cpu")
    if format == "onnx":
        from undiffuse.interop.onnx import export_onnx

        say(f"{out} (differs from PyTorch by {export_onnx(loaded, out):.1e} of the output)")
        return
    from undiffuse.interop.diffusers import export_diffusers, needs_adapter

    written = export_diffusers(loaded, out)
    say(f"{written}; next, in Python: diffusers.DDPMPipeline.from_pretrained({str(written)!r})")
    if reason := needs_adapter(loaded):
        say(f"that takes undiffuse too, imported first (import undiffuse.interop.adapter): {reason}")
    elif loaded.data.classes:
        say("it has classes, which DDPMPipeline does not ask for: give its unet class_labels in a loop of your own")

"""`undiffuse export`."""

import re
from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import FORCE, say

PARTS = re.compile(r"model_index\.json|scheduler|unet")


def export(
    model: str = typer.Argument(
        ..., help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    out: Path = typer.Option(..., "--out", "-o", help="The folder (or .onnx file) to write."),
    format: str = typer.Option(
        None, help="diffusers (a pipeline folder) or onnx [by the name in --out].", autocompletion=complete.formats
    ),
    force: bool = FORCE,
) -> None:
    """Write MODEL for other programs.

    \b
    Examples:
      undiffuse export fashion-mnist --out fashion-diffusers
      undiffuse export fashion-mnist --out fashion-mnist.onnx
    """
    from undiffuse import output
    from undiffuse.model import load

    if format is None:
        format = "onnx" if out.suffix.lower() == ".onnx" else "diffusers"
    if format == "onnx":
        output.claim({"--out": out}, force)
    else:
        output.claim_folder("--out", out, force)
    loaded = load(model, "cpu")
    if format == "onnx":
        from undiffuse.interop.onnx import export_onnx

        differences: list[float] = []
        place = output.put(out, lambda path: differences.append(export_onnx(loaded, path)), force)
        say(f"{place} (differs from PyTorch by {differences[0]:.1e} of the output)")
        return
    from undiffuse.interop.diffusers import export_diffusers, needs_adapter

    written = output.put_folder(out, lambda path: export_diffusers(loaded, path), PARTS, force)
    say(f"{written}; next, in Python: diffusers.DDPMPipeline.from_pretrained({str(written)!r})")
    if reason := needs_adapter(loaded):
        say(f"this needs undiffuse, imported first (import undiffuse.interop.adapter): {reason}")
    elif loaded.data.classes:
        say("it has classes, which DDPMPipeline does not use: pass class_labels to its unet in a loop of your own")

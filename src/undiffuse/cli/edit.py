"""`undiffuse edit`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import (
    APG,
    DEVICE,
    ENGINE,
    ETA,
    FORCE,
    GRID,
    GUIDANCE,
    GUIDE,
    INTERVAL,
    NEGATIVE,
    PROMPT,
    RESCALE,
    SAMPLER,
    THRESHOLD,
    VOCODER,
    alone,
    check_effect,
    flags,
    given,
    guidance_of,
    say,
)
from undiffuse.cli.recorded import recorded
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut
from undiffuse.progress import bar
from undiffuse.registry import RESTORERS
from undiffuse.text import PROMPTED

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.editing.rows import Join
    from undiffuse.generate import Recipe
    from undiffuse.model import Model
    from undiffuse.provenance import Provenance

ALWAYS = ("model", "images", "n", "steps", "seed", "out", "device", "engine", "vocoder", "force")
GUIDED = ("class_name", "prompt", "negative", "guidance", "guidance_interval", "guide", "rescale", "apg")
SAMPLED = ("sampler", "eta", "grid", "threshold")
SDEDIT = (
    *("strength", "mask", "mask_threshold", "strokes", "outpaint", "gap", "resampling", "passes", "batch_size"),
    *GUIDED,
    *SAMPLED,
)
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "invert": ("source_class", "source_prompt", "strength", "grid", *GUIDED),
    "to": ("frames", "path", "strength", "source_class", "source_prompt", "grid"),
    "style": ("switch", "source_class", "source_prompt", "grid"),
    "restoration": ("noise", "method", "mask", "mask_threshold", "class_name", "prompt", *SAMPLED),
}
"""The options of the edits that are not SDEdit; those of SDEdit stand above."""


def edit(
    context: typer.Context,
    model: str = typer.Argument(
        ..., help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    images: list[Path] = typer.Argument(None, help="Pictures of any size and kind, sounds, or a text."),
    infill: str = typer.Option(None, help='For a model of texts: "The ____ of the ____", a _ for each token to write.'),
    strength: float = typer.Option(
        None,
        help="How much may change, 0 to 1: the noise level sigma/(alpha+sigma) [.6; 1 for a mask or --invert].",
    ),
    mask: Path = typer.Option(None, help="A picture of what to repaint: white is repainted, black is kept."),
    mask_threshold: int = typer.Option(None, help="Make a soft mask hard: repaint values from here on, 1 to 255."),
    strokes: Path = typer.Option(None, help="A picture with transparency, painted over the images before the edit."),
    outpaint: float = typer.Option(None, help="Shrink the images by this share and paint around them."),
    gap: str = typer.Option(
        None, help="For sounds: make START,END anew, in seconds; to the end as .3, and from the beginning as ,.2"
    ),
    resampling: int = typer.Option(1, min=1, help="Repeats of each step with a mask or gap (RePaint); 5 is usual."),
    passes: int = typer.Option(1, min=1, help="Number of successive edits, each of the previous result."),
    invert: str = typer.Option(
        None, help="Keep what the class does not decide, by finding the images' noise first: exact or friendly."
    ),
    source_class: str = typer.Option(
        None, "--from-class", help="The class that the images are of [any], for --invert, --to and --style."
    ),
    source_prompt: str = typer.Option(
        None, "--from-prompt", help="What the images show, in words, for --invert, --to and --style."
    ),
    to: Path = typer.Option(None, help="Interpolate from the image to this one."),
    frames: int = typer.Option(9, min=2, help="Number of pictures of an interpolation, including its ends."),
    path: str = typer.Option("slerp", help="For an interpolation: slerp (of the noise) or mean (of the pictures)."),
    style: Path = typer.Option(None, help="Keep the image's layout and take the texture of this one."),
    switch: float = typer.Option(0.5, help="The strength below which --style decides."),
    restoration: str = typer.Option(
        None,
        "--restore",
        help="Undo what happened to the image: superres:4, blur:SIGMA, colour, inpaint (with --mask), dequantise:GREYS "
        "or FILE.npz of a linear map. To a sound: denoise, denoise:START,END (of pure noise), bandwidth:HZ.",
    ),
    noise: float = typer.Option(
        0.0, help="For --restore: the noise in the image or sound, a standard deviation on the scale [-1, 1]."
    ),
    method: str = typer.Option("gaussian", help=f"For --restore: {', '.join(RESTORERS)}."),
    class_name: list[str] = typer.Option([], "--class", help="The class to edit towards [any]."),
    prompt: list[str] = PROMPT,
    negative: str = NEGATIVE,
    guidance: float = GUIDANCE,
    guidance_interval: str = INTERVAL,
    guide: str = GUIDE,
    rescale: float = RESCALE,
    apg: str = APG,
    n: int = typer.Option(1, "-n", min=1, help="Number of variations of each image."),
    sampler: str = SAMPLER,
    steps: int = typer.Option(20, min=1, help="Number of steps, all of them below the strength."),
    eta: float = ETA,
    grid: str = GRID,
    threshold: str = THRESHOLD,
    seed: int = typer.Option(0, help="Seed of the noise."),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        help="A .png (a grid of several), a folder of .png, .npz or .npy; sounds: .wav [IMAGE-edited.png or .wav].",
    ),
    batch_size: int = typer.Option(64, min=1, help="Images at once; affects memory, not the edits."),
    device: str = DEVICE,
    engine: str = ENGINE,
    vocoder: str = VOCODER,
    force: bool = FORCE,
) -> None:
    """Edit IMAGES with MODEL.

    Without a mask this is SDEdit: noise up to the strength, then denoising. Images are resized to the model's size,
    sounds brought to its rate and loudness and back to the loudness they had.

    \b
    Examples:
      undiffuse edit fashion-mnist bag.png --class Bag --strength .5 -n 8
      undiffuse edit fashion-mnist scribble.png --class Sneaker --strength .7
      undiffuse edit fashion-mnist shirt.png --mask sleeve.png --class Pullover --resampling 5
      undiffuse edit fashion-mnist coat.png --invert exact --from-class Coat --class Dress
      undiffuse edit avatars face.png --prompt "a man with red hair" --strength .6
      undiffuse edit fashion-mnist a.png --to b.png --frames 9
      undiffuse edit shakespeare --infill "The ____ of the ____" -n 3
      undiffuse edit fashion-mnist tiny.png --restore superres:4 -n 8
      undiffuse edit runs/speech hum.wav --class seven --strength .6 -n 4
      undiffuse edit runs/speech seven.wav --gap .3,.4 --resampling 5
      undiffuse edit runs/speech noisy.wav --restore denoise
    """
    from undiffuse import output
    from undiffuse.cli import edit_sounds, sounds, texts
    from undiffuse.generate import Recipe

    alone("edit")
    if texts.is_text(model):
        texts.edit(context, model, images or [], infill, out, force)
        return
    if sounds.is_model(model):
        edit_sounds.edit(context, model, images or [], out, force)
        return
    if not images or infill is not None:
        raise UsageError("name the pictures to edit; --infill is for models of texts")
    if gap is not None:
        raise UsageError("--gap is for models of sounds: of a picture, a --mask says what to repaint")
    check_options(context, TECHNIQUES)
    settings = guidance_of(guidance, guidance_interval, rescale, apg, PROMPTED if prompt else 1.0)
    check_effect(context, settings)
    recipe = Recipe(sampler, steps, eta, grid, threshold, seed, settings)
    count = frames if to is not None else n * len(images)
    out = out or output.fresh(Path(f"{Path(output.name_of(images[0])).stem}-edited.png"))
    output.check(out, count, force)

    import numpy as np

    from undiffuse.data.single import read_mask, read_pictures, read_strokes
    from undiffuse.editing import rows as edits
    from undiffuse.engines import with_engine
    from undiffuse.guide import with_guide
    from undiffuse.model import load, pictures_only
    from undiffuse.vocoder import with_vocoder

    loaded = load(model, device)
    pictures_only(loaded, "undiffuse edit")
    if guide:
        loaded = with_guide(loaded, guide)
    loaded = with_vocoder(loaded, vocoder)
    shape = loaded.data.shape
    if restoration is not None and engine == "auto" and RESTORERS.find(method).differentiates:
        engine = "torch"
    loaded = with_engine(loaded, engine, count * recipe.evaluations, bar)
    linear_map = Path(restoration) if (restoration or "").lower().endswith(".npz") else None
    sources = [path for path in (*images, mask, strokes, to, style, linear_map) if path is not None]
    origin = recorded(context, loaded, seed, sources)
    repaint = None if mask is None else read_mask(mask, images, shape, mask_threshold)
    if restoration is not None:
        _restore(
            loaded,
            images,
            restoration,
            recipe,
            n,
            class_name,
            prompt,
            out,
            force,
            repaint=repaint,
            noise=noise,
            method=method,
            origin=origin,
        )
        return
    pictures = np.repeat(read_pictures(images, shape), n, axis=0)
    if strokes is not None:
        pictures = read_strokes(strokes, images, shape).over(pictures)
    if outpaint is not None:
        pictures, repaint = edits.placed(pictures, outpaint)
    edited = technique(
        context.params, loaded, recipe, pictures, lambda path: read_pictures([path], shape), repaint=repaint
    )
    say(output.write(out, loaded.domain, edited, None, (), force, origin))


def technique(
    options: Mapping[str, Any],
    model: "Model",
    recipe: "Recipe",
    rows: "np.ndarray",
    read: "Callable[[Path], np.ndarray]",
    *,
    repaint: "np.ndarray | None" = None,
    join: "Join | None" = None,
) -> "np.ndarray":
    """The edit of rows that the options ask for; `read` reads the file of another row, (1, ...).

    `repaint` and `join` are those of `undiffuse.editing.rows.edit`. Says how far guidance went out of range.
    """
    import numpy as np

    from undiffuse.editing import rows as edits
    from undiffuse.guidance import Overshoot
    from undiffuse.guide import request

    invert, to, style, strength = (options[name] for name in ("invert", "to", "style", "strength"))
    if strength is None:
        strength = 1.0 if repaint is not None or invert is not None else 0.6
    count, any_class = len(rows), model.unconditional(len(rows))
    source = any_class if options["source_class"] is None else model.of_class(options["source_class"], count)
    if options["source_prompt"] is not None:
        source = model.of_prompt(options["source_prompt"], count)
    target = request(model, count, any_class, options["class_name"], options["negative"], options["prompt"])
    overshoot, passes, resampling = Overshoot(), options["passes"], options["resampling"]
    work = (count if to is None else options["frames"]) * recipe.steps * passes * resampling
    with bar("editing", work) as tick:
        if invert is not None:
            return edits.regenerate(model, rows, recipe, source, target, method=invert, strength=strength, tick=tick)
        if to is not None:
            return edits.interpolate(
                *(model, rows[0], read(to)[0], recipe, source, options["frames"]),
                method=options["path"],
                strength=strength,
                tick=tick,
            )
        if style is not None:
            fine = np.repeat(read(style), count, axis=0)
            return edits.mix(model, rows, fine, recipe, source, switch=options["switch"], tick=tick)
        edited = edits.edit(
            model,
            rows,
            recipe,
            target,
            strength=strength,
            repaint=repaint,
            passes=passes,
            resampling=resampling,
            batch_size=options["batch_size"],
            tick=tick,
            overshoot=overshoot,
            join=join,
        )
    if recipe.guidance.scale != 1 and model.domain.bounded:
        say(f"{overshoot.share:.1%} of the predicted values were out of range (--threshold {recipe.threshold})")
    return edited


def check_options(context: typer.Context, techniques: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError for options that exclude each other, or have no effect on the edit that is asked for.

    `techniques`: the options of each edit that is not SDEdit.
    """
    written, chosen = flags(context), given(context)
    edits = [name for name in techniques if name in chosen]
    if len(edits) > 1:
        raise UsageError(f"{' and '.join(written[name] for name in edits)} are different edits: choose one")
    used = {*ALWAYS, *(techniques[edits[0]] if edits else SDEDIT), *edits}
    if unused := [written[name] for name in chosen if name not in used]:
        raise UsageError(f"{unused[0]} has no effect on {written[edits[0]] if edits else 'this edit'}: leave it out")
    masked = {"mask", "outpaint", "gap", *(edits if "resampling" in used else ())} & {*chosen}
    if {"mask", "outpaint"} <= masked:
        raise UsageError("--mask and --outpaint each say what to repaint: choose one")
    if "mask_threshold" in chosen and "mask" not in chosen:
        raise UsageError("--mask-threshold makes a mask hard: name a --mask")
    if context.params["resampling"] > 1 and not masked:
        raise UsageError("--resampling joins old and new: name a --mask or --outpaint, or a --gap of a sound")
    if context.params["n"] > 1 and (context.params["invert"] == "exact" or "to" in edits):
        raise UsageError(f"{written[edits[0]]} has one result for each image: leave -n out")
    if "to" in edits and len(context.params["images"]) > 1:
        raise UsageError("--to leads from one image to another: name one")
    if "restoration" in edits and len(context.params["images"]) > 1:
        raise UsageError("--restore takes one file at a time")
    for name in ("class_name", "prompt"):
        if "restoration" in edits and len(context.params[name]) > 1:
            raise UsageError(f"--restore takes one {written[name]} at a time")


def _restore(
    model: "Model",
    images: Sequence[Path],
    spec: str,
    recipe: "Recipe",
    n: int,
    classes: Sequence[str],
    prompts: Sequence[str],
    out: Path,
    force: bool,
    *,
    repaint: "np.ndarray | None",
    noise: float,
    method: str,
    origin: "Provenance",
) -> None:
    """n restorations of one image."""
    from undiffuse import output
    from undiffuse.data.single import read_pictures
    from undiffuse.editing.operators import parse
    from undiffuse.editing.restore import restore_picture

    degradation = parse(spec, model.domain.shape, repaint)
    channels, *size = degradation.map.observed
    if images[0].suffix.lower() == ".npy":
        rows = _read_numbers(images[0])[None]
    elif spec == "inpaint":
        rows = read_pictures(images, model.data.shape)
    elif len(size) == 2:
        rows = read_pictures(images, (*size, channels))
    else:
        raise UsageError(f"--restore {spec} observes {channels} numbers, not a picture: give them as .npy")
    condition = model.of_class(classes[0], n) if classes else None
    if prompts:
        condition = model.of_prompt(prompts[0], n, *classes)
    with bar("restoring", n * recipe.steps) as tick:
        restored = restore_picture(
            model,
            rows,
            degradation,
            noise=noise,
            method=method,
            recipe=recipe,
            n=n,
            condition=condition,
            tick=tick,
        )
    say(output.write(out, model.domain, restored.rows, None, (), force, origin))
    say(restored.report())


def _read_numbers(path: Path) -> "np.ndarray":
    """The array of a .npy file. Raises UsageError for anything else."""
    import numpy as np

    from undiffuse.data.npy import Archive, open_npy

    try:
        found = open_npy(path)
    except UndiffuseError as error:
        raise UsageError(f"{path}: not an array of numbers ({cut(str(error), 100)})") from None
    if isinstance(found, Archive):
        raise UsageError(f"{path}: not an array of numbers (it is an .npz file)")
    return np.array(found)

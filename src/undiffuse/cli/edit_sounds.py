"""`undiffuse edit` for a model of sounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli.console import check_effect, check_options, flags, given, guidance_of, say
from undiffuse.cli.recorded import recorded
from undiffuse.errors import UsageError
from undiffuse.progress import bar
from undiffuse.text import PROMPTED

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.data.recordings import Recordings
    from undiffuse.generate import Recipe
    from undiffuse.model import Model

RESYNTHESIS = ("model", "images", "steps", "seed", "out", "device", "force")
OF_PICTURES = ("mask", "mask_threshold", "strokes", "outpaint", "infill")


def edit(context: typer.Context, model: str, files: Sequence[Path], out: Path | None, force: bool) -> None:
    """`undiffuse edit` of a model of sounds; the rest of its options are in the context."""
    from undiffuse import output
    from undiffuse.cli.edit import technique

    options = context.params
    _check(context, files)
    usual = PROMPTED if options["prompt"] else 1.0
    settings = guidance_of(options["guidance"], options["guidance_interval"], options["rescale"], options["apg"], usual)
    check_effect(context, settings)
    gap, spec, to, n = options["gap"], options["restoration"], options["to"], options["n"]
    count = options["frames"] if to is not None else n * len(files)
    out = out or output.fresh(Path(f"{Path(output.name_of(files[0])).stem}-edited.wav"))
    output.check(out, count, force, ".wav")

    import numpy as np

    from undiffuse.data.recordings import read_sounds
    from undiffuse.domains.sounds import Sounds, Waves
    from undiffuse.editing.sounds import missing, missing_gap, piece_of
    from undiffuse.engines import with_engine
    from undiffuse.generate import Recipe
    from undiffuse.guide import with_guide
    from undiffuse.model import load
    from undiffuse.vocoder import is_vocoder, with_vocoder

    sampler, steps, eta, grid, threshold, seed = (
        options[name] for name in ("sampler", "steps", "eta", "grid", "threshold", "seed")
    )
    recipe = Recipe(sampler, steps, eta, grid, threshold, seed, settings)
    loaded = load(model, options["device"])
    domain = loaded.domain
    assert isinstance(domain, Sounds)
    if is_vocoder(loaded.data):
        _resynthesise(context, loaded, files, out, force)
        return
    if options["guide"]:
        loaded = with_guide(loaded, options["guide"])
    observed = spec == "denoise" and isinstance(domain, Waves)
    if isinstance(domain, Waves) and (spec or "").startswith("denoise:"):
        raise UsageError(
            f"--restore {spec}: a model of samples is told how loud the noise is: --restore denoise --noise .05"
        )
    if not observed and (unused := [name for name in ("noise", "method") if name in given(context)]):
        raise UsageError(f"--{unused[0]} is for --restore denoise and a model of samples (data.sound=waves)")
    part = None if gap is None else missing_gap(domain, piece_of("--gap", gap, domain))
    timed = gap is not None or spec is not None
    if not timed:
        loaded = with_vocoder(loaded, options["vocoder"])
    trim = not timed and (loaded.learnt is None or loaded.learnt.trim)
    clips = read_sounds(files, domain, trim)
    if spec is not None and not observed:
        part = missing(spec, domain, clips)
    other = to or options["style"]
    origin = recorded(context, loaded, seed, [*files, *([other] if other else [])])
    if observed:
        edited = _denoised(context, loaded, recipe, clips)
    else:
        loaded = with_engine(loaded, options["engine"], count * recipe.evaluations, bar)
        last = read_sounds([other], domain, trim) if other else clips
        clips = clips.repeated(n)
        repaint = None if part is None else np.broadcast_to(part.repaint, (len(files), *domain.shape[1:])).repeat(n, 0)
        join = None if part is None else part.join
        edited = technique(options, loaded, recipe, clips.rows, lambda path: last.rows, repaint=repaint, join=join)
        edited = clips.between(last, edited) if to is not None else clips.at_their_level(edited)
    say(output.write(out, domain, edited, None, (), force, origin))


def _check(context: typer.Context, files: Sequence[Path]) -> None:
    """Raises UsageError for options that sounds do not take, and as `edit.check_options`."""
    from undiffuse.cli.edit import SDEDIT, TECHNIQUES
    from undiffuse.cli.edit import check_options as check_techniques

    chosen = given(context)
    if not files:
        raise UsageError("name the sounds to edit")
    if names := [name for name in OF_PICTURES if name in chosen]:
        raise UsageError(
            f"{flags(context)[names[0]]} is not for sounds: --gap START,END says which seconds to make anew"
        )
    if "gap" in chosen and "restoration" in chosen:
        raise UsageError("--gap and --restore each say what to make anew: choose one")
    if "vocoder" in chosen and {"gap", "restoration"} & {*chosen}:
        raise UsageError("--vocoder makes whole waveforms, and --gap and --restore keep what is known: leave it out")
    check_techniques(context, {**TECHNIQUES, "restoration": (*SDEDIT, "noise", "method")})


def _resynthesise(context: typer.Context, vocoder: "Model", files: Sequence[Path], out: Path, force: bool) -> None:
    """Each file's waveform made anew from its spectrogram, at the file's level."""
    from undiffuse import output
    from undiffuse.data.recordings import read_sounds
    from undiffuse.domains.sounds import Sounds
    from undiffuse.vocoder import STEPS, resynthesised

    check_options(context, RESYNTHESIS, "vocoders, which make a sound anew from its spectrogram")
    options, domain = context.params, vocoder.domain
    assert isinstance(domain, Sounds)
    steps = options["steps"] if "steps" in given(context) else STEPS
    clips = read_sounds(files, domain, vocoder.learnt is None or vocoder.learnt.trim)
    made = resynthesised(vocoder, clips.rows, steps, options["seed"])
    origin = recorded(context, vocoder, options["seed"], files)
    say(output.write(out, domain, clips.at_their_level(made), None, (), force, origin))


def _denoised(context: typer.Context, model: "Model", recipe: "Recipe", clips: "Recordings") -> "np.ndarray":
    """n samples of what one noisy recording may have been, for a model of samples."""
    from undiffuse.cli.edit import TECHNIQUES
    from undiffuse.cli.edit import check_options as check_techniques
    from undiffuse.editing.sounds import denoise
    from undiffuse.engines import with_engine
    from undiffuse.registry import RESTORERS

    check_techniques(context, TECHNIQUES)
    options = context.params
    method = options["method"] if "method" in given(context) else "mmps"
    if RESTORERS.find(method).needs:
        raise UsageError(f"--method {method} needs matrices of the size of a clip squared: take mmps or dps")
    model = with_engine(model, "torch" if options["engine"] == "auto" else options["engine"])
    n = options["n"]
    condition = model.of_class(options["class_name"][0], n) if options["class_name"] else None
    if options["prompt"]:
        condition = model.of_prompt(options["prompt"][0], n, *options["class_name"])
    with bar("restoring", n * recipe.steps) as tick:
        restored = denoise(
            model, clips, noise=options["noise"], method=method, recipe=recipe, n=n, condition=condition, tick=tick
        )
    say(restored.report())
    return clips.repeated(n).at_their_level(restored.rows)

"""`undiffuse demo`."""

import sys
from pathlib import Path

import typer

from undiffuse.cli.console import FORCE, command, say
from undiffuse.progress import bar


def demo(
    minutes: float = typer.Option(4.0, min=0.05, help="How long to train."),
    out: Path = typer.Option(None, "--out", "-o", help="The folder for the run and the pictures [demo]."),
    force: bool = FORCE,
) -> None:
    """Try everything once: train on the embedded emoji for a few minutes, then sample from the result.

    In the folder of an earlier demo, it continues that one.

    \b
    Example:
      undiffuse demo --minutes 4
    """
    from undiffuse import output
    from undiffuse.data import load as load_data
    from undiffuse.generate import Recipe, generate_shared
    from undiffuse.model import load
    from undiffuse.plots import save_grid
    from undiffuse.training import train

    if out is None:
        out = Path("demo") if _is_demo(Path("demo")) else output.fresh(Path("demo"))
    began = _is_demo(out)
    output.claim_folder("--out", out, force or began)
    run, data = out / "run", out / "data.png"
    say(f"{'continuing on' if began else 'training on'} the embedded emoji, {minutes:g} minutes ...")
    values = {"data.source": "emoji", "training.minutes": minutes}
    outcome = train(values, run, resume=began, report=say, progress_bar=sys.stderr.isatty())
    if outcome.signal:
        if outcome.main:
            say(f"next: {command('demo', '--minutes', f'{minutes:g}', '--out', out)}")
        raise typer.Exit(outcome.exit_code)
    model, recipe = load(run), Recipe()
    with bar("sampling", 64 * recipe.steps) as tick:
        images = generate_shared(model, recipe, 64, model.condition(range(64)), tick=tick)
    reference = load("emoji")
    built_in = generate_shared(reference, recipe, 64, reference.condition(range(64)))
    if images is None or built_in is None:  # another process of a torchrun reports
        return
    save_grid(load_data("emoji").images[::27], data)
    save_grid(images, out / "samples.png")
    save_grid(built_in, out / "built-in.png")
    say(f"{data}: some of the data")
    say(f"{out / 'samples.png'}: 64 samples of the model you trained")
    say(f"{out / 'built-in.png'}: the same noise through the built-in model, which trained longer")
    say(f"{run / 'previews'}: how the samples improved during training")
    say(f"next: {command('explain', run)}   or   undiffuse train YOUR_FOLDER --minutes 30")


def _is_demo(folder: Path) -> bool:
    return (folder / "run" / "run.json").exists()

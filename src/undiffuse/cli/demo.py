"""`undiffuse demo`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli.console import FORCE, say
from undiffuse.names import command
from undiffuse.progress import bar
from undiffuse.text import PROMPTED

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.model import Model

DATA = "avatars"
PROMPTS = ("a man with red hair", "sunglasses", "green hair", "a yellow shirt")
FACES, STRENGTH = 8, 0.85


def demo(
    minutes: float = typer.Option(4.0, min=0.05, help="How long to train."),
    out: Path = typer.Option(None, "--out", "-o", help="The folder for the run and the pictures [demo]."),
    force: bool = FORCE,
) -> None:
    """Try everything once: train on drawn faces for a few minutes, sample from the result, edit a face by sentences.

    In the folder of an earlier demo, it continues that one.

    \b
    Example:
      undiffuse demo --minutes 4
    """
    from undiffuse import output
    from undiffuse.data import load as load_data
    from undiffuse.generate import Recipe, generate_shared
    from undiffuse.model import load
    from undiffuse.plots import save_grid, strips
    from undiffuse.training import train

    if out is None:
        out = Path("demo") if _is_demo(Path("demo")) else output.fresh(Path("demo"))
    began = _is_demo(out)
    output.claim_folder("--out", out, force or began)
    run, data = out / "run", out / "data.png"
    say(f"{'continuing on' if began else 'training on'} the embedded avatars, {minutes:g} minutes ...")
    values = {"data.source": DATA, "training.minutes": minutes}
    outcome = train(values, run, resume=began, report=say, progress_bar=sys.stderr.isatty())
    if outcome.signal:
        if outcome.main:
            say(f"next: {command('demo', '--minutes', f'{minutes:g}', '--out', out)}")
        raise typer.Exit(outcome.exit_code)
    model, recipe = load(run), Recipe()
    with bar("sampling", 64 * recipe.steps) as tick:
        images = generate_shared(model, recipe, 64, model.condition(range(64)), tick=tick)
    reference = load(DATA)
    built_in = generate_shared(reference, recipe, 64, reference.condition(range(64)))
    if images is None or built_in is None:  # another process of a torchrun reports
        return
    save_grid(load_data(DATA).images[:64], data)
    save_grid(images, out / "samples.png")
    save_grid(built_in, out / "built-in.png")
    strips(_edits(reference), [""] * FACES, "faces edited by sentences", out / "edits.png")
    say(f"{data}: some of the data")
    say(f"{out / 'samples.png'}: 64 samples of the model you trained")
    say(f"{out / 'built-in.png'}: the same noise through the built-in model, which trained longer")
    say(f"{out / 'edits.png'}: faces of the data, edited by sentences with the built-in model")
    say(f"{run / 'previews'}: how the samples improved during training")
    prompted = command("sample", DATA, "--prompt", "a woman with blue hair and glasses")
    say(f"next: {prompted}   or   {command('explain', run)}")


def _edits(model: "Model") -> "list[tuple[str, np.ndarray]]":
    """Rows of pictures: faces that the model has not seen, then what they become by each of PROMPTS."""
    import numpy as np

    from undiffuse.data import load as load_data
    from undiffuse.editing.rows import regenerate
    from undiffuse.generate import Recipe
    from undiffuse.guidance import Guidance
    from undiffuse.guide import request

    faces, count = np.array(load_data(DATA, "test").images[:FACES]), FACES
    recipe, plain = Recipe(guidance=Guidance(PROMPTED)), model.unconditional(count)
    rows = [("the data", faces)]
    for prompt in PROMPTS:
        asked = request(model, count, plain, prompts=[prompt])
        edited = regenerate(model, faces, recipe, plain, asked, method="friendly", strength=STRENGTH)
        rows.append((f'"{prompt}"', edited))
    return rows


def _is_demo(folder: Path) -> bool:
    return (folder / "run" / "run.json").exists()

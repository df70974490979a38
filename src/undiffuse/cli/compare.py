"""`undiffuse compare`."""

from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import DEVICE, ENGINE, FORCE, GUIDANCE, INTERVAL, check_effect, guidance_of, say, table
from undiffuse.cli.evaluate import FEATURES_HELP, SIZE_HELP, SPLIT_HELP
from undiffuse.errors import UsageError
from undiffuse.progress import bar


def compare(
    context: typer.Context,
    subjects: list[str] = typer.Argument(
        ...,
        metavar="A B C ...",
        help="Models, MODEL@sampler:steps, or samples.",
        autocompletion=complete.models,
    ),
    data: str = typer.Option(
        None, help="The data set to measure against [that of the first model].", autocompletion=complete.data
    ),
    split: str = typer.Option("test", help=SPLIT_HELP, autocompletion=complete.splits),
    n: int = typer.Option(None, "-n", min=2, help="Number of samples of each [2000, or what the smallest file holds]."),
    features: str = typer.Option("auto", help=FEATURES_HELP, autocompletion=complete.features),
    sampler: str = typer.Option("auto", help="For models without @sampler.", autocompletion=complete.samplers),
    steps: int = typer.Option(None, min=1, help="For models without @sampler:steps [20; of a student, its own]."),
    guidance: float = GUIDANCE,
    guidance_interval: str = INTERVAL,
    seed: int = typer.Option(0, help="Seed of the samples."),
    json_file: Path = typer.Option(None, "--json", help="Write everything measured as JSON."),
    bits: int = typer.Option(
        None, min=2, help="Measure bits per dimension of so many test images too, of models that have a likelihood."
    ),
    figure: Path = typer.Option(None, help="Plot quality against speed, with diversity as colour (.png)."),
    size: int = typer.Option(None, min=1, help=SIZE_HELP),
    device: str = DEVICE,
    engine: str = ENGINE,
    force: bool = FORCE,
) -> None:
    """Measure models and samples side by side: quality, diversity, speed, size and what their training cost.

    \b
    Examples:
      undiffuse compare fashion-mnist runs/mine
      undiffuse compare fashion-mnist@ddim:10 fashion-mnist@ddpm:250 fashion-mnist@dpm++2m:10
      undiffuse compare fashion-mnist runs/vae runs/ar --bits 2000
      undiffuse compare fashion-mnist others.npz --data fashion-mnist --figure trilemma.png
    """
    from undiffuse import output
    from undiffuse.evaluation.compare import compare as measured
    from undiffuse.evaluation.compare import draw_trilemma, rows, to_json
    from undiffuse.evaluation.report import conditions_line, notes
    from undiffuse.files import write_json
    from undiffuse.generate import Recipe

    if len(set(subjects)) < 2:
        raise UsageError("compare at least two different models or sets of samples; for one, use undiffuse evaluate")
    output.claim({"--json": json_file, "--figure": figure}, force, {"--json": [".json"], "--figure": [".png"]})
    settings = guidance_of(guidance, guidance_interval)
    check_effect(context, settings)
    recipe = Recipe(sampler, steps or Recipe.steps, seed=seed, guidance=settings)
    contenders = measured(
        subjects,
        data,
        split=split,
        n=n,
        features=features,
        recipe=recipe,
        size=size,
        bits=bits,
        device=device,
        engine=engine,
        bar=bar,
    )
    if not contenders:  # another process of a torchrun reports
        return
    first = contenders[0].evaluation
    say(f"{first.n:,} samples of each; {conditions_line(first, sampling=False)}")
    say(table(rows(contenders)))
    for note in notes(first):
        say(note)
    if json_file:
        say(f"{output.put(json_file, lambda path: write_json(path, to_json(contenders)), force)}: all numbers")
    if figure:
        drawn = output.put(figure, lambda path: draw_trilemma(contenders, path), force)
        say(f"{drawn}: quality, speed and diversity in one picture")
    else:
        say("--figure FILE.png draws quality, speed and diversity in one picture")

"""`undiffuse compare`."""

from pathlib import Path

import typer

from undiffuse.cli.console import ENGINE_HELP, say, table
from undiffuse.cli.evaluate import FEATURES_HELP, SPLIT_HELP
from undiffuse.errors import UsageError
from undiffuse.progress import bar


def compare(
    subjects: list[str] = typer.Argument(..., metavar="A B C ...", help="Models, MODEL@sampler:steps, or samples."),
    data: str = typer.Option(None, help="The data set to measure against [the one the first model learnt]."),
    split: str = typer.Option("test", help=SPLIT_HELP),
    n: int = typer.Option(2000, "-n", min=10, help="How many samples of each."),
    features: str = typer.Option("auto", help=FEATURES_HELP),
    sampler: str = typer.Option("auto", help="Where @ names none."),
    steps: int = typer.Option(20, min=1, help="Where @ names none."),
    seed: int = typer.Option(0, help="Of the samples."),
    json_file: Path = typer.Option(None, "--json", help="Write everything measured as JSON."),
    figure: Path = typer.Option(Path("trilemma.png"), help="Quality against speed, diversity as colour."),
    device: str = typer.Option(None, help="cpu, cuda, mps ... [a GPU where there is one]."),
    engine: str = typer.Option("auto", help=ENGINE_HELP),
) -> None:
    """Measure models and samples side by side: quality, diversity, speed, size and what their training cost.

    \b
    Examples:
      undiffuse compare fashion-mnist runs/mine
      undiffuse compare fashion-mnist@ddim:10 fashion-mnist@ddpm:250 fashion-mnist@dpm++2m:10
      undiffuse compare fashion-mnist others.npz --data fashion-mnist --json comparison.json
    """
    from undiffuse.files import write_json
    from undiffuse.generate import Recipe
    from undiffuse.metrics.compare import compare as measured
    from undiffuse.metrics.compare import draw_trilemma, rows, to_json
    from undiffuse.metrics.report import conditions_line

    if len(set(subjects)) < 2:
        raise UsageError("compare at least two different models or sets of samples; for one, undiffuse evaluate")
    recipe = Recipe(sampler, steps, seed=seed)
    contenders = measured(
        subjects, data, split=split, n=n, features=features, recipe=recipe, device=device, engine=engine, bar=bar
    )
    if not contenders:  # another process of a torchrun tells
        return
    say(conditions_line(contenders[0].evaluation, sampling=False))
    say(table(rows(contenders)))
    if json_file:
        write_json(json_file, to_json(contenders))
    draw_trilemma(contenders, figure)
    say(f"{figure}: quality, speed and diversity in one picture")

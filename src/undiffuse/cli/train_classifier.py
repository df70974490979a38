"""`undiffuse train-classifier`."""

from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import FORCE, alone, say, table
from undiffuse.cli.early import check_source
from undiffuse.progress import bar


def train_classifier(
    data: str = typer.Argument(..., help="As for `undiffuse train`, with classes.", autocompletion=complete.data),
    out: Path = typer.Option(None, "--out", "-o", help="The classifier's folder [runs/DATA-classifier]."),
    minutes: float = typer.Option(None, help="Train for this long [3]."),
    steps: int = typer.Option(None, help="Train for this many steps."),
    size: int = typer.Option(None, help="Side of the images in pixels, as in the model to be guided."),
    flip: bool = typer.Option(False, "--flip", help="Mirror images at random."),
    skip_corrupt: bool = typer.Option(False, "--skip-corrupt", help="Skip unreadable files."),
    seed: int = typer.Option(None, help="Seed of everything random [0]."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="A setting of data, network or training, as for `undiffuse train`."
    ),
    force: bool = FORCE,
) -> None:
    """Train a classifier of noisy images of DATA, which can guide a model, and measure it at every noise level.

    If runs/DATA-classifier exists, runs/DATA-classifier-2 is written.

    \b
    Examples:
      undiffuse train-classifier fashion-mnist --minutes 5
      undiffuse train-classifier ~/pictures --size 64 --flip --out runs/pictures-classifier
      undiffuse train-classifier emoji --steps 500 --set training.batch_size=32
    """
    from undiffuse.config import make_config, parse_settings

    alone("train-classifier")

    given = {
        "data.source": data,
        "data.size": size,
        "data.flip": flip or None,
        "data.skip_corrupt": skip_corrupt or None,
        "training.minutes": minutes,
        "training.steps": steps,
        "training.seed": seed,
    }
    values = parse_settings(settings) | {name: value for name, value in given.items() if value is not None}
    make_config(values)  # refuses what is wrong before torch is loaded
    check_source(data)

    from undiffuse import output
    from undiffuse.training.classifier import train_classifier as run
    from undiffuse.training.folders import usual_folder

    usual = usual_folder(data)
    place = out or output.fresh(usual.with_name(f"{usual.name}-classifier"))
    classifier = run(values, place, force=force, bar=bar)
    if measured := classifier.training.get("accuracy"):
        rows = [["sigma / alpha", "accuracy", "95% interval", "nats"]]
        for level in measured["levels"]:
            low, high = level["interval"] or (level["accuracy"],) * 2
            interval = f"{low:.3f} to {high:.3f}"
            rows.append([f"{level['ratio']:g}", f"{level['accuracy']:.3f}", interval, f"{level['nats']:.3f}"])
        say(table(rows))
        say(f"on {measured['images']} images of the {measured['split']} split")
    else:
        say(f"{data} has no held-out images, so nothing was measured")
    training = classifier.training
    say(f"trained {training['steps']} steps in {training['seconds']:g} s: {classifier.name}")

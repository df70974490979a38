"""`undiffuse tune`."""

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import DEVICE, ENGINE, numbers, say, table
from undiffuse.progress import bar
from undiffuse.registry import SAMPLERS

DETERMINISTIC = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.searchable)


def tune(
    model: str = typer.Argument(
        ..., help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    sampler: str = typer.Option(
        "auto",
        help=f"auto (by the steps), {DETERMINISTIC}.",
        autocompletion=complete.samplers,
    ),
    steps: str = typer.Option("5,8,10", help="Numbers of steps to find times for."),
    samples: int = typer.Option(128, min=1, help="Number of trajectories to compare."),
    device: str = DEVICE,
    engine: str = ENGINE,
) -> None:
    """Find the times at which a few steps of MODEL come closest to many, and store them in its folder.

    `undiffuse sample` and `undiffuse evaluate` use them unless --grid is given. A new search replaces older times for
    the same sampler and steps.

    \b
    Examples:
      undiffuse tune runs/emoji
      undiffuse tune runs/emoji --sampler unipc --steps 5,6,7,8
    """
    from undiffuse.model import find
    from undiffuse.tune import tune as search

    found = search(model, sampler, numbers("--steps", steps), samples=samples, device=device, engine=engine, bar=bar)
    rows = [["", "before", "after", "log-SNRs visited"]]
    for key, entry in found.items():
        visited = " ".join(f"{value:.1f}" for value in entry["log_snr"])
        rows.append([key, f"{entry['before']:.4f}", f"{entry['after']:.4f}", visited])
    say(table(rows))
    say(f"stored in {find(model) / 'grids.json'}")
    say("before, after: distance of the samples' distribution from that of a fine trajectory (0: equal)")

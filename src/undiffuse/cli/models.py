"""`undiffuse models`."""

from undiffuse.cli.console import say


def models() -> None:
    """List the built-in models.

    \b
    Example:
      undiffuse models
      undiffuse sample emoji --class "Animals & Nature"
    """
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from undiffuse.card import BUILT_IN, built_in, read_card
    from undiffuse.domains import domain_of
    from undiffuse.names import format_shape, listed

    table = Table("name", "data", "classes", "size", "trained")
    table.columns[0].no_wrap = True
    for name in built_in():
        folder = BUILT_IN / name
        _, data, training, measured = read_card(folder)
        size = (folder / "weights.safetensors").stat().st_size / 1e6
        noun, minutes = domain_of(data).noun, f"{training['seconds'] / 60:.0f} min"
        trained = f"{training['images']:,} {noun} in {minutes} on {training['device']}"
        if "base" in training:
            trained += f", from {Path(training['base']['name']).name}"
        if measured:
            trained += f"; {measured.bits_per_dim.mean:.3f} bits/dim ({measured.n:,} {measured.split} images)"
        table.add_row(
            name,
            f"{data.count} {noun} of {format_shape(data.shape)} ({data.licence})",
            listed(data.learnt),
            f"{size:.1f} MB",
            trained,
        )
    Console().print(table)
    say("Sample from one: undiffuse sample NAME. Any run folder is a model too.")

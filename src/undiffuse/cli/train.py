"""`undiffuse train`."""

from pathlib import Path

import typer

from undiffuse.cli.console import say
from undiffuse.cli.early import check_source
from undiffuse.errors import UsageError
from undiffuse.names import command
from undiffuse.registry import PRESETS, RIVALS

RECIPES = [name for name in PRESETS if name not in RIVALS]


def train(
    data: str = typer.Argument(
        None, help="A built-in name, a folder, .npz, .npy, .parquet, .txt, .jsonl or a hub name [emoji]."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="The run folder: new or, with --resume, existing [runs/DATA]."),
    minutes: float = typer.Option(None, help="Train for this long; the learning rate decays to fit."),
    steps: int = typer.Option(None, help="Train for this many steps."),
    preset: str = typer.Option(None, help=f"{', '.join(RECIPES)} [by --minutes]."),
    rival: str = typer.Option(None, "--model", help=f"A rival of diffusion: {', '.join(RIVALS)}."),
    base: str = typer.Option(None, "--from", help="Fine-tune this run, model folder or built-in model."),
    lora: int = typer.Option(None, help="With --from: train adapters of this rank instead of all weights."),
    resume: bool = typer.Option(False, "--resume", help="Continue the run in --out exactly where it stopped."),
    size: int = typer.Option(None, help="Side of the images in pixels."),
    flip: bool = typer.Option(False, "--flip", help="Mirror images at random."),
    skip_corrupt: bool = typer.Option(False, "--skip-corrupt", help="Skip unreadable files."),
    seed: int = typer.Option(None, help="Seed of everything random [0]."),
    settings: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Any setting; see --help-config."),
    config: Path = typer.Option(None, "--config", help="Settings from a file: TOML, JSON, a run.json or a model.json."),
    dump_config: bool = typer.Option(False, "--dump-config", help="Print all settings as TOML for --config, and exit."),
    help_config: bool = typer.Option(False, "--help-config", help="List every setting with its default, and exit."),
) -> None:
    """Train a model on DATA; write it, its metrics and its previews to a run folder.

    \b
    Examples:
      undiffuse train emoji --minutes 5
      undiffuse train ~/pictures --size 64 --flip --minutes 60 --out runs/pictures
      undiffuse train fashion-mnist --set training.batch_size=64 --set network.channels=32,64
      undiffuse train ~/pictures --from emoji --minutes 10 --set data.augment=0.12
      undiffuse train --out runs/emoji --resume
      undiffuse train mytext.txt --minutes 30
      undiffuse train fashion-mnist --model gan --minutes 30
      undiffuse train emoji --minutes 60 --dump-config > mine.toml
      undiffuse train --config mine.toml --out runs/mine
      torchrun --nproc-per-node 2 -m undiffuse train fashion-mnist --out runs/two
    """
    from undiffuse.bases import base_config, check_preset
    from undiffuse.card import read_run
    from undiffuse.config import keys, make_config, over, parse_settings, preset_for, written
    from undiffuse.config import preset as settings_of
    from undiffuse.configfile import as_toml, read_settings
    from undiffuse.data.textfiles import is_text
    from undiffuse.names import one_of
    from undiffuse.text import reader

    if help_config:
        for name, kind, default, description in keys():
            say(f"{name} = {written(default)}\n    {description} ({kind})")
        return
    chosen = parse_settings(settings)
    given = {
        "data.source": data,
        "data.size": size,
        "data.flip": flip or None,
        "data.skip_corrupt": skip_corrupt or None,
        "training.minutes": minutes,
        "training.steps": steps,
        "training.seed": seed,
        "training.base": base,
        "training.lora": lora,
    }
    chosen |= {name: value for name, value in given.items() if value is not None}
    if config:
        chosen = over(read_settings(config), chosen)
    if rival:
        if preset or base:
            raise UsageError(f"--model {rival} has a recipe of its own: leave {'--preset' if preset else '--from'} out")
        preset = one_of("model", rival, RIVALS)
    if base and resume:
        raise UsageError(
            "--from begins a run and --resume continues one, which has its weights already: give one of them"
        )
    if not resume:
        chosen.setdefault("data.source", "emoji")
        if not (config or "network.text" in chosen or chosen.get("training.base")):
            chosen = reader() | chosen
        if preset and (start := chosen.get("training.base")):
            check_preset(preset, start)
        elif not preset and not chosen.get("training.base"):
            preset = "text" if is_text(chosen["data.source"]) else preset_for(chosen.get("training.minutes"))
    values = over(settings_of(preset), chosen) if preset else chosen
    if resume and out is None:
        from undiffuse.training.folders import folder_to_resume

        out = folder_to_resume(values.get("data.source", "emoji"))
    begun = read_run(out) if out and resume and (out / "run.json").exists() else None
    resolved = make_config(values, begun or base_config(values))  # refuses what is wrong before torch is loaded
    if dump_config:
        say(as_toml(resolved))
        return
    if not resume:
        check_source(resolved.data.source)

    import os
    import sys
    from contextlib import nullcontext

    from undiffuse.training import train as run
    from undiffuse.training.folders import new_folder, usual_folder

    usual = out or usual_folder(resolved.data.source)
    with nullcontext(out) if out else new_folder(usual) as place:
        if place != usual and os.environ.get("RANK", "0") == "0":
            say(f"{usual} exists already (--resume continues a run): this run is {place}")
        outcome = run(values, place, resume=resume, report=say, progress_bar=sys.stderr.isatty())
    if outcome.main and outcome.finished:
        say(f"trained {outcome.step} steps: {outcome.checkpoint}")
        say(f"previews: {outcome.run / 'previews'}; metrics: {outcome.run / 'metrics.jsonl'}")
        vocoder = resolved.network.kind == "vocoder"
        say(f"next: {command('edit', outcome.run, 'SOUND.wav') if vocoder else command('sample', outcome.run)}")
    elif outcome.main:
        say(f"next: {command('train', '--out', outcome.run, '--resume')}")
    if outcome.signal:
        raise typer.Exit(outcome.exit_code)

"""What the shell offers when Tab is pressed: names alone. Where none fits, the shell completes file names itself.

Nothing heavy is imported, so the names are written out here; a test holds them to those there are.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

Completion = Callable[[str], list[str]]

DDPM = ("ddpm", "ddpm-large", "ddpm-learned")
SAMPLERS = ("auto", *DDPM, "ddim", "euler", "heun", "dpm++2m", "dpm++3m", "unipc", "unipc3")
GRIDS = ("trailing", "leading", "linspace", "quadratic", "karras", "log-snr")
THRESHOLDS = ("clip", "dynamic", "none")
ENGINES = ("auto", "torch", "compile", "onnxruntime")
FEATURES = ("auto", "efficientnet-lite0", "classifier", "inception")
METRICS = ("all", "frechet", "spatial", "kernel", "manifold", "scores", "classes", "copying", "bpd", "ode")
SPLITS = ("test", "train", "all")
DATA = ("emoji", "digits", "fashion-mnist", "mnist")
FORMATS = ("diffusers", "onnx")


def _of(names: Iterable[str]) -> Completion:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """The built-in models, and the runs under runs/."""
    built_in = (path.parent.name for path in Path(__file__).parents[1].glob("models/*/model.json"))
    runs = (path.parent.as_posix() for path in Path().glob("runs/*/run.json"))
    return _of(sorted(built_in) + sorted(runs))(incomplete)


samplers, grids, thresholds, engines = map(_of, (SAMPLERS, GRIDS, THRESHOLDS, ENGINES))
features, metrics, splits, data, formats = map(_of, (FEATURES, METRICS, SPLITS, DATA, FORMATS))

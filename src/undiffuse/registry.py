"""The names that people choose by, and where what they mean is defined. Imports no torch.

To add one, write one file and one line here; or, from another package, `SAMPLERS.add("mine", Sampler("my.module:step",
"trailing"))` (docs/extending.md). Configuration, command line, help texts, completion and "did you mean" all read these
lists. A name is only ever looked up here: nothing that a file contains is imported.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from undiffuse.errors import UsageError
from undiffuse.names import did_you_mean, shown

E = TypeVar("E")
NAME = re.compile(r"[a-z][a-z0-9+-]{0,39}")  # what the command line and files can hold, unquoted


def located(place: str) -> Any:
    """The object that "package.module:attribute" names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Mapping[str, E], Generic[E]):
    """Names of one kind of thing, in order, each with an entry: "package.module:attribute", or what holds one as
    `place`."""

    def __init__(self, kind: str, entries: Mapping[str, E]):
        self.kind, self._entries = kind, dict(entries)

    def __getitem__(self, name: str) -> E:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: E) -> None:
        """Adds a name for this process. Raises ValueError where there is one already, or it is no name."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is no name: use a-z, 0-9, + and -, a letter first, 40 of them at most")
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} {name!r} already")
        self._entries[name] = entry

    def check(self, name: str, *also: str) -> str:
        """`name`, if there is such a thing or it is one of `also`. Raises UsageError, naming the nearest, if not."""
        if name not in self._entries and name not in also:
            raise UsageError(f"no {self.kind} {shown(name)}: {self.hint(name, *also)}")
        return name

    def hint(self, name: str, *also: str) -> str:
        """What to say to someone who asked for a `name` that there is not: the nearest, and all there are."""
        names = (*also, *self)
        choices = f"choose from {', '.join(names)}"
        nearest = did_you_mean(str(name), names, "")
        return f"{nearest} Else {choices}" if nearest else choices

    def find(self, name: str) -> Any:
        """What the place of an entry stands for. Raises UsageError as `check`."""
        entry = self._entries[self.check(name)]
        return located(str(getattr(entry, "place", entry)))


@dataclass(frozen=True)
class Schedule:
    """A function or class that gives an `undiffuse.process.Schedule`.

    Attributes:
        place: where it is.
        first: the setting of `process` that is its first argument: "steps" for a table; None: it takes options alone.
    """

    place: str
    first: str | None = None


@dataclass(frozen=True)
class Target:
    """A function (level, sigma_data) -> `undiffuse.targets.Coefficients`.

    Attributes:
        place: where it is.
        of_noise: x_0 is read from it with a factor sigma / alpha that has no bound, as from eps.
    """

    place: str
    of_noise: bool = False

    @property
    def coefficients(self) -> Any:
        """The function."""
        return located(self.place)


@dataclass(frozen=True)
class Sampler:
    """A step rule (`undiffuse.sampling.Step`) and how it is used.

    Attributes:
        place: where the function is.
        grid: the name of the grid it is used with unless another is asked for.
        evaluations: of the network, in every step but the last, which takes one.
        options: arguments that go with the name.
        random: it draws noise in every step.
        eta: it takes the argument eta.
    """

    place: str
    grid: str
    evaluations: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False
    eta: bool = False

    @property
    def step(self) -> Any:
        """The rule, its options bound."""
        from functools import partial

        rule = located(self.place)
        return partial(rule, **self.options) if self.options else rule


@dataclass(frozen=True)
class Network:
    """A function (config, inputs, outputs, classes) -> network, which `undiffuse.build.make_network` calls.

    Attributes:
        place: where it is.
        decide: where a function (config.network, (height, width)) -> config.network is that decides what is None there
            and refuses what does not go together; None: nothing is to be decided.
    """

    place: str
    decide: str | None = None


@dataclass(frozen=True)
class Engine:
    """A function (model, bar) -> network, and the modules it `needs`."""

    place: str
    needs: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """Whether what it needs is installed."""
        return all(find_spec(name) for name in self.needs)


@dataclass(frozen=True)
class Format:
    """A function (model, path) that writes a model for other programs: a file, or a folder of what `parts` matches."""

    place: str
    parts: str | None = None


SCHEDULES = Registry(
    "schedule",
    {
        "linear": Schedule("undiffuse.process:linear", "steps"),
        "cosine": Schedule("undiffuse.process:cosine", "steps"),
        "scaled-linear": Schedule("undiffuse.process:scaled_linear", "steps"),
        "sigmoid": Schedule("undiffuse.process:sigmoid", "steps"),
        "quadratic": Schedule("undiffuse.process:quadratic", "steps"),
        "betas": Schedule("undiffuse.process:Table", "betas"),
        "vp": Schedule("undiffuse.process:VP"),
        "sub-vp": Schedule("undiffuse.process:SubVP"),
        "ve": Schedule("undiffuse.process:VE"),
        "edm": Schedule("undiffuse.process:EDM"),
        "flow": Schedule("undiffuse.process:FlowMatching"),
        "log-snr": Schedule("undiffuse.process:LogSNR", "log_snrs"),
    },
)
TARGETS = Registry(
    "target",
    {
        "eps": Target("undiffuse.targets:eps", of_noise=True),
        "x0": Target("undiffuse.targets:x0"),
        "v": Target("undiffuse.targets:v"),
        "score": Target("undiffuse.targets:score", of_noise=True),
        "flow": Target("undiffuse.targets:flow"),
        "edm": Target("undiffuse.targets:edm"),
        "levels": Target("undiffuse.targets:levels"),
    },
)
LOSSES = Registry(
    "loss",
    {
        "error": "undiffuse.objectives:weighted_error",
        "bound": "undiffuse.objectives:variational_bound",
        "hybrid": "undiffuse.objectives:hybrid",
        "continuous-bound": "undiffuse.objectives:continuous_bound",
    },
)
WEIGHTINGS = Registry(
    "weighting",
    {
        "simple": "undiffuse.objectives.weighting:simple",
        "x0": "undiffuse.objectives.weighting:x0",
        "v": "undiffuse.objectives.weighting:snr_plus_one",
        "truncated-snr": "undiffuse.objectives.weighting:truncated_snr",
        "min-snr": "undiffuse.objectives.weighting:min_snr",
        "sigmoid": "undiffuse.objectives.weighting:sigmoid",
        "flow": "undiffuse.objectives.weighting:flow",
        "edm": "undiffuse.objectives.weighting:edm",
    },
)
TIMES = Registry(
    "distribution of times",
    {"uniform": "undiffuse.objectives.times:uniform", "log-normal": "undiffuse.objectives.times:log_normal"},
)
DRAWS = Registry(
    "way to draw times",
    {
        "independent": "undiffuse.objectives.times:independent",
        "antithetic": "undiffuse.objectives.times:antithetic",
        "low-discrepancy": "undiffuse.objectives.times:low_discrepancy",
    },
)
NETWORKS = Registry(
    "network",
    {
        "unet": Network("undiffuse.unets:make_unet", "undiffuse.unets:decide_unet"),
        "unet2d": Network("undiffuse.unets:make_unet2d", "undiffuse.unets:decide_unet2d"),
    },
)
SAMPLERS = Registry(
    "sampler",
    {
        "ddpm": Sampler("undiffuse.sampling:ancestral", "trailing", random=True),
        "ddpm-large": Sampler(
            "undiffuse.sampling:ancestral", "trailing", options={"variance": "large"}, random=True
        ),
        "ddpm-learned": Sampler(
            "undiffuse.sampling:ancestral", "trailing", options={"variance": "learned"}, random=True
        ),
        "ddim": Sampler("undiffuse.sampling:ddim", "trailing", eta=True),
        "euler": Sampler("undiffuse.sampling:ddim", "karras"),  # Euler in sigma / alpha is DDIM with eta = 0
        "heun": Sampler("undiffuse.sampling:heun", "karras", evaluations=2),
        "dpm++2m": Sampler("undiffuse.sampling:dpm_solver_pp", "log-snr"),
        "dpm++3m": Sampler("undiffuse.sampling:dpm_solver_pp", "log-snr", options={"order": 3}),
        "unipc": Sampler("undiffuse.sampling:unipc", "log-snr"),
        "unipc3": Sampler("undiffuse.sampling:unipc", "log-snr", options={"order": 3}),
    },
)
GRIDS = Registry(
    "grid",
    {
        "trailing": "undiffuse.sampling.grids:trailing",
        "leading": "undiffuse.sampling.grids:leading",
        "linspace": "undiffuse.sampling.grids:linspace",
        "quadratic": "undiffuse.sampling.grids:quadratic",
        "karras": "undiffuse.sampling.grids:karras",
        "log-snr": "undiffuse.sampling.grids:log_snr",
    },
)
THRESHOLDS = Registry(
    "threshold",
    {
        "clip": "undiffuse.guidance:clip",
        "dynamic": "undiffuse.guidance:dynamic_threshold",
        "none": "undiffuse.guidance:unchanged",
    },
)
ENGINES = Registry(
    "engine",
    {
        "torch": Engine("undiffuse.engines:plain"),
        "compile": Engine("undiffuse.engines:compiled"),
        "onnxruntime": Engine("undiffuse.engines:onnx_runtime", needs=("onnx", "onnxscript", "onnxruntime")),
    },
)
FORMATS = Registry(
    "format",
    {
        "diffusers": Format("undiffuse.interop.diffusers:export_diffusers", r"model_index\.json|scheduler|unet"),
        "onnx": Format("undiffuse.interop.onnx:export_onnx"),
    },
)
FEATURES = Registry(
    "features",
    {
        "efficientnet-lite0": "undiffuse.metrics.features.efficientnet:efficientnet",
        "classifier": "undiffuse.metrics.features.classifier:classifier",
        "inception": "undiffuse.metrics.features.inception:inception",
    },
)
METRIC_GROUPS = Registry(
    "metrics",
    {
        "frechet": "undiffuse.metrics.measure:frechet",
        "spatial": "undiffuse.metrics.measure:spatial",
        "kernel": "undiffuse.metrics.measure:kernel",
        "manifold": "undiffuse.metrics.measure:manifold",
        "scores": "undiffuse.metrics.measure:scores",
        "classes": "undiffuse.metrics.measure:classes",
        "copying": "undiffuse.metrics.measure:copying",
    },
)
"""What can be measured of samples."""
DATA = Registry(
    "data set",
    {
        "emoji": "undiffuse.data.builtin:open_emoji",
        "digits": "undiffuse.data.builtin:open_digits",
        "fashion-mnist": "undiffuse.data.known:open_fashion_mnist",
        "mnist": "undiffuse.data.known:open_mnist",
    },
)
PRESETS: Registry[Path] = Registry(
    "preset", {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.toml"))}
)
"""Files of settings that belong together."""

"""The names that users choose from, and where their objects are defined. Imports no torch.

To add one, write one file and one line here; or, outside the package, call `add`, as in docs/extending.md.
Configuration, command line, help texts, completion and "did you mean" all read these lists. A name is only ever looked
up here: nothing that a file contains is imported.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from undiffuse.names import one_of, shown

E = TypeVar("E")
NAME = re.compile(r"[a-z][a-z0-9+-]{0,39}")  # needs no quotes on the command line or in files


def located(target: str) -> Any:
    """The object that "package.module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Mapping[str, E], Generic[E]):
    """Names of one kind of thing, in order. What a name stands for is imported when it is looked up.

    Args:
        kind: the word for one of them in error messages.
        entries: name -> "package.module:attribute", or the object itself.
    """

    def __init__(self, kind: str, entries: Mapping[str, Any]):
        self.kind, self._entries = kind, dict(entries)

    def __getitem__(self, name: str) -> E:
        entry = self._entries[name]
        thing: E = located(entry) if isinstance(entry, str) else entry
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: Any) -> None:
        """Adds a name for this process. Raises ValueError if it is taken or is not a valid name."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not a valid name: use a-z, 0-9, + and -, a letter first, at most 40")
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} {name!r} already")
        self._entries[name] = entry

    def check(self, name: str) -> str:
        """`name`, if it is registered; else raises UsageError, naming the nearest and all of them."""
        return one_of(self.kind, name, self)

    def find(self, name: str) -> E:
        """What `name` stands for. Raises UsageError as `check`."""
        return self[self.check(name)]


@dataclass(frozen=True)
class Schedule:
    """A function or class that makes an `undiffuse.process.Schedule`.

    Attributes:
        place: where it is.
        first: the setting of `process` that is its first argument: "steps" for a table; None: it takes only options.
    """

    place: str
    first: str | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return located(self.place)(*arguments, **options)


@dataclass(frozen=True)
class Sampler:
    """A step rule (`undiffuse.sampling.Step`) and how it is used.

    Attributes:
        place: where the function is.
        grid: the name of its default grid.
        evaluations: network evaluations per step; the last step takes one.
        options: arguments bound to the function.
        random: it draws noise in every step, so no grid can be searched for it.
        guides: it is a form of guidance, so its recipe needs a guidance scale other than 1.
        jumps: it tells a flow map where each step ends (`undiffuse.denoiser.Denoiser.jump`).
    """

    place: str
    grid: str
    evaluations: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False
    guides: bool = False
    jumps: bool = False

    @property
    def searchable(self) -> bool:
        """Whether a grid can be searched for it: every sample depends on the times alone."""
        return not (self.random or self.guides or self.jumps)

    @property
    def step(self) -> Any:
        """The rule with its options bound."""
        rule = located(self.place)
        return partial(rule, **self.options) if self.options else rule


@dataclass(frozen=True)
class Restorer:
    """A way to draw samples that agree with an observation (`undiffuse.editing.restore`).

    Attributes:
        place: where it is: a guidance (denoise, process, observation, ...) -> denoise, or a step rule.
        needs: what it takes besides the observation, by the name of the argument: the data's "covariance", the
            "spectrum" of the linear map.
        differentiates: it takes derivatives of the network, which ONNX Runtime does not have.
        steps: it is a step rule, in place of the sampler's.
    """

    place: str
    needs: str = ""
    differentiates: bool = False
    steps: bool = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return located(self.place)(*arguments, **options)


SCHEDULES: Registry[Schedule] = Registry(
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
        "survival": Schedule("undiffuse.process:LinearSurvival"),
    },
)
TARGETS: Registry[Any] = Registry(
    "target",
    {
        "eps": "undiffuse.targets:eps",
        "x0": "undiffuse.targets:x0",
        "v": "undiffuse.targets:v",
        "score": "undiffuse.targets:score",
        "flow": "undiffuse.targets:flow",
        "edm": "undiffuse.targets:edm",
    },
)
"""Functions (noise level, sigma_data) -> `undiffuse.targets.Coefficients`."""
CATEGORICAL, FIRST_CATEGORICAL = "categorical", "levels"
"""The one target that is not linear in x_0 and eps (undiffuse.discretised), and its old name."""
LOSSES: Registry[Any] = Registry(
    "loss",
    {
        "error": "undiffuse.objectives:weighted_error",
        "bound": "undiffuse.objectives:variational_bound",
        "hybrid": "undiffuse.objectives:hybrid",
        "continuous-bound": "undiffuse.objectives:continuous_bound",
        "cross-entropy-hybrid": "undiffuse.objectives:hybrid_cross_entropy",
        "count": "undiffuse.objectives:count",
        "spans": "undiffuse.objectives:spans",
        "next-token": "undiffuse.objectives:next_token",
        "paths": "undiffuse.objectives.paths:paths",
        "adversarial": "undiffuse.objectives.adversarial:adversarial",
        "flow-map": "undiffuse.objectives:flow_map",
        "solution": "undiffuse.objectives.solution:solution",
        "matching": "undiffuse.objectives.matching:matching",
        "own": "undiffuse.rivals.rival:own",
    },
)
WEIGHTINGS: Registry[Any] = Registry(
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
TIME_SAMPLERS: Registry[Any] = Registry(
    "distribution of times",
    {"uniform": "undiffuse.objectives.times:uniform", "log-normal": "undiffuse.objectives.times:log_normal"},
)
DRAWS: Registry[Any] = Registry(
    "way to draw times",
    {
        "independent": "undiffuse.objectives.times:independent",
        "antithetic": "undiffuse.objectives.times:antithetic",
        "low-discrepancy": "undiffuse.objectives.times:low_discrepancy",
    },
)
RIVALS: Registry[Any] = Registry(
    "rival",
    {
        "gan": "undiffuse.rivals.gan:R3GAN",
        "vae": "undiffuse.rivals.vae:VAE",
        "flow": "undiffuse.rivals.flow:TarFlow",
        "flow-fast": "undiffuse.rivals.flow:Coupling",
        "ar": "undiffuse.rivals.pixels:Pixels",
        "ar-fast": "undiffuse.rivals.coded:Coded",
    },
)
"""Other generative models of pictures (`undiffuse.rivals.rival.Rival`); each has a preset of its name."""
NETWORKS: Registry[Any] = Registry(
    "network",
    {
        "unet": "undiffuse.build:make_unet",
        "unet2d": "undiffuse.build:make_unet2d",
        "mlp": "undiffuse.build:make_mlp",
        "transformer": "undiffuse.build:make_transformer",
        "vocoder": "undiffuse.build:make_vocoder",
        **dict.fromkeys(RIVALS, "undiffuse.build:make_rival"),
    },
)
"""Functions (config, inputs, outputs, takes, dims) -> network, as `undiffuse.build.make_network` calls them."""
SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "ddpm": Sampler("undiffuse.sampling:ancestral", "trailing", random=True),
        "ddpm-large": Sampler("undiffuse.sampling:ancestral", "trailing", options={"variance": "large"}, random=True),
        "ddpm-learned": Sampler(
            "undiffuse.sampling:ancestral", "trailing", options={"variance": "learned"}, random=True
        ),
        "ddim": Sampler("undiffuse.sampling:ddim", "trailing"),
        "cfg++": Sampler("undiffuse.sampling:cfg_plus_plus", "trailing", guides=True),
        "euler": Sampler("undiffuse.sampling:ddim", "karras"),  # Euler in sigma / alpha is DDIM with eta = 0
        "jump": Sampler("undiffuse.sampling:ddim", "jumps", jumps=True),
        "heun": Sampler("undiffuse.sampling:heun", "karras", evaluations=2),
        "dpm++2m": Sampler("undiffuse.sampling:dpm_solver_pp", "karras"),
        "dpm++3m": Sampler("undiffuse.sampling:dpm_solver_pp", "log-snr", options={"order": 3}),
        "unipc": Sampler("undiffuse.sampling:unipc", "karras"),
        "unipc3": Sampler("undiffuse.sampling:unipc", "log-snr", options={"order": 3}),
    },
)
TOKEN_SAMPLERS: Registry[Sampler] = Registry(
    "sampler of tokens",
    {
        "ancestral": Sampler("undiffuse.sampling:reveal", "trailing", random=True),
        "first-hitting": Sampler("undiffuse.sampling:first_hitting", "trailing", random=True),
        "confidence": Sampler("undiffuse.sampling:confidence", "trailing", random=True),
        "remdm": Sampler("undiffuse.sampling:remdm", "trailing", random=True),
        "predictor-corrector": Sampler(
            "undiffuse.sampling:predictor_corrector", "trailing", evaluations=2, random=True
        ),
    },
)
GRIDS: Registry[Any] = Registry(
    "grid",
    {
        "trailing": "undiffuse.sampling.grids:trailing",
        "leading": "undiffuse.sampling.grids:leading",
        "linspace": "undiffuse.sampling.grids:linspace",
        "quadratic": "undiffuse.sampling.grids:quadratic",
        "karras": "undiffuse.sampling.grids:karras",
        "jumps": "undiffuse.sampling.grids:jumps",
        "log-snr": "undiffuse.sampling.grids:log_snr",
    },
)
THRESHOLDS: Registry[Any] = Registry(
    "threshold",
    {
        "clip": "undiffuse.guidance:clip",
        "dynamic": "undiffuse.guidance:dynamic_threshold",
        "none": "undiffuse.guidance:unchanged",
    },
)
"""Functions (denoise, process) -> denoise that wrap a denoiser."""
RESTORATIONS: Registry[Any] = Registry(
    "restoration",
    {
        "superres": "undiffuse.editing.operators:area_mean",
        "blur": "undiffuse.editing.operators:blur",
        "colour": "undiffuse.editing.operators:luma",
        "inpaint": "undiffuse.editing.operators:masked",
        "dequantise": "undiffuse.editing.operators:quantised",
        "matrix": "undiffuse.editing.operators:from_file",
    },
)
"""Functions (shape of x_0, argument) -> `undiffuse.guidance.LinearMap`: what can have happened to a picture."""
RESTORERS: Registry[Restorer] = Registry(
    "method of restoration",
    {
        "gaussian": Restorer("undiffuse.guidance:gaussian_guidance", "covariance"),
        "mmps": Restorer("undiffuse.guidance:moment_matching", differentiates=True),
        "dps": Restorer("undiffuse.editing.baselines:dps", differentiates=True, steps=True),
        "pigdm": Restorer("undiffuse.editing.baselines:pigdm", "spectrum", differentiates=True, steps=True),
        "ddrm": Restorer("undiffuse.editing.baselines:ddrm", "spectrum", steps=True),
        "diffpir": Restorer("undiffuse.editing.baselines:diffpir", "spectrum", steps=True),
        "daps": Restorer("undiffuse.editing.baselines:daps", "spectrum", steps=True),
    },
)
DOMAINS: Registry[Any] = Registry(
    "domain",
    {
        "pictures": "undiffuse.domains.pictures:Pictures",
        "points": "undiffuse.domains.points:Points",
        "texts": "undiffuse.domains.texts:Texts",
        "waves": "undiffuse.domains.sounds:Waves",
        "log-mel": "undiffuse.domains.log_mel:LogMel",
        "mdct": "undiffuse.domains.mdct:MDCT",
    },
)
"""Kinds of data (`undiffuse.domains.Domain`)."""
CONDITIONS: Registry[Any] = Registry(
    "condition",
    {
        "labels": "undiffuse.conditions.labels:Labels",
        "sentences": "undiffuse.conditions.sentences:Sentences",
        "several": "undiffuse.conditions.several:Several",
        "spectra": "undiffuse.conditions.spectra:Spectra",
    },
)
"""Kinds of condition (`undiffuse.conditions.Condition`)."""
TEXTS: Registry[Any] = Registry(
    "text", {"words": "undiffuse.text.words:Words", "minilm": "undiffuse.text.minilm:MiniLM"}
)
"""What turns captions into tokens (`undiffuse.text.text.Text`)."""
TOKENIZERS: Registry[Any] = Registry(
    "way to spell a text",
    {
        "characters": "undiffuse.data.tokens:Characters",
        "bytes": "undiffuse.data.tokens:Bytes",
        "bpe": "undiffuse.data.bpe:BPE",
    },
)
"""What turns a text to be learnt into tokens, and back (`undiffuse.data.tokens.Tokenizer`)."""
BUILT_IN = Path(__file__).parent / "models"
_FILES = Path(__file__).parent / "presets"
PRESETS: Registry[Path] = Registry(
    "preset",
    {path.stem: path for path in sorted(_FILES.glob("*.toml"))}
    | {name: _FILES / "rivals" / f"{name}.toml" for name in RIVALS},
)
"""Named groups of settings: the files in undiffuse/presets."""


def built_in() -> list[str]:
    """Names of the models in the package; a student's is in its teacher's folder: fashion-mnist/1-step."""
    found = [*BUILT_IN.glob("*/model.json"), *BUILT_IN.glob("*/*/model.json")]
    return sorted(path.parent.relative_to(BUILT_IN).as_posix() for path in found)


ENGINES = ("torch", "compile", "onnxruntime")
FORMATS = ("diffusers", "onnx")
FEATURES = ("efficientnet-lite0", "classifier", "inception")
METRICS = ("frechet", "spatial", "kernel", "manifold", "scores", "classes", "copying")
DENSITIES = ("bpd", "ode")
TEXT_METRICS = ("bpd", "infill", "fluency")
"""Those of models of texts."""
SOUND_METRICS = ("frechet", "classes", "words", "quality", "copying", "speed")
"""Those of models of sounds."""
TEXT = "text"
"""The measure of models with prompts."""

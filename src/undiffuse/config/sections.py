"""The settings of a run, section by section: typed and validated.

`None` means "decided from the data when the run begins"; the run saves the decided values.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from undiffuse.registry import (
    CATEGORICAL,
    DRAWS,
    FIRST_CATEGORICAL,
    LOSSES,
    NETWORKS,
    RIVALS,
    SCHEDULES,
    TARGETS,
    TEXTS,
    TIME_SAMPLERS,
    TOKENIZERS,
    WEIGHTINGS,
    Registry,
)

MOST_JUMPS = 16
MANY = 10**9  # a bound on counts such as steps: more than any run needs, and far from overflow
Fraction = Annotated[float, Field(ge=0, lt=1)]
LogSNR = Annotated[float, Field(ge=-100, le=100)]  # beyond, alpha or sigma is too small for float32
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Channels = Annotated[int, Field(ge=1, le=8192)]
Stage = Annotated[int, Field(ge=0, le=12)]
Octave = Annotated[int, Field(ge=0, le=24)]
OptionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Option = (
    Annotated[str, Field(max_length=64)]
    | bool
    | Annotated[int, Field(ge=-MANY, le=MANY)]
    | Annotated[float, Field(ge=-MANY, le=MANY)]
    | None
)


@dataclass(frozen=True, eq=False)
class Choice:
    """Annotates the type of a setting with the names it takes: those of a registry, and `also`."""

    registry: Registry[Any]
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, including names added to the registry."""
        return (*self.registry, *self.also)

    def __call__(self, name: str) -> str:
        return name if name in self.also else self.registry.check(name)


def _choice(registry: Registry[Any], *also: str) -> Any:
    choice = Choice(registry, also)
    return Annotated[str, AfterValidator(choice), choice]


if TYPE_CHECKING:
    ScheduleName = str
    TargetName = str
    LossName = str
    WeightingName = str
    TimesName = str
    DrawName = str
    NetworkName = str
    TextName = str
    TokensName = str
else:
    ScheduleName, TargetName, LossName = _choice(SCHEDULES), _choice(TARGETS, CATEGORICAL), _choice(LOSSES)
    WeightingName, TimesName, DrawName = _choice(WEIGHTINGS), _choice(TIME_SAMPLERS), _choice(DRAWS)
    NetworkName, TextName, TokensName = _choice(NETWORKS), _choice(TEXTS), _choice(TOKENIZERS)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        """Rejects booleans as numbers: in Python, True is 1."""
        kind = cls.model_fields[about.field_name or ""].annotation
        values = value if isinstance(value, list | tuple) else [value]
        if kind is not bool and any(isinstance(one, bool) for one in values):
            raise ValueError("should not be true or false")
        return value

    _added: ClassVar[tuple[str, ...]] = ()
    """Settings that are written only if they are set: the files and fingerprints of other models stay as they were."""

    @model_serializer(mode="wrap")
    def _as_saved(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        unset = [key for key in self._added if getattr(self, key) == type(self).model_fields[key].default]
        return {key: value for key, value in values.items() if key not in unset}


class DataConfig(_Section):
    """The training data."""

    source: str = Field("emoji", description="a built-in name, a folder, .npz, .npy, .parquet or a hub name")
    size: int | None = Field(None, ge=4, le=4096, description="side in pixels; None: the data's own or a sensible one")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; None: as in the data")
    flip: bool = Field(False, description="mirror images left to right at random")
    shift: int = Field(0, ge=0, le=4096, description="shift images at random by up to this many pixels, edges repeated")
    skip_corrupt: bool = Field(False, description="skip unreadable files instead of failing")
    augment: float = Field(
        0.0, ge=0, lt=1, description="probability of each move of EDM's augmentation, such as 0.12; samples are unmoved"
    )

    kind: Literal["auto", "text"] = Field(
        "auto", description="text: the source is a text, which only data sets on the hub do not show"
    )
    length: int = Field(128, ge=4, le=16_384, description="tokens of a window of text")
    tokens: TokensName = Field("characters", description="what texts are made of")
    vocabulary: int | None = Field(
        None, ge=1, le=65_536, description="how many tokens there are; None: as in the text, or 2048 for tokens=bpe"
    )

    sound: Literal["log-mel", "mdct", "waves"] = Field(
        "log-mel", description="what sounds are to the network: log-mel spectrograms, their MDCT or the samples"
    )
    rate: int | None = Field(None, ge=4000, le=48_000, description="of sounds, in Hz; None: theirs, at most 16000")
    seconds: float | None = Field(None, gt=0, le=60, description="of a row of sound; None: for most files, up to 1.28")
    trim: bool = Field(True, description="leave out the silence at both ends of a sound")

    _added: ClassVar[tuple[str, ...]] = (
        *("augment", "kind", "length", "tokens", "vocabulary"),
        *("sound", "rate", "seconds", "trim"),
    )


class ProcessConfig(_Section):
    """The forward process."""

    kind: Literal["gaussian", "absorbing", "uniform"] = Field(
        "gaussian", description="noise of texts: tokens are masked (absorbing) or replaced by any (uniform)"
    )
    schedule: ScheduleName = Field("cosine", description="the noise schedule; the first six are tables of betas")
    steps: int = Field(1000, ge=1, le=1_000_000, description="T, for a table")
    betas: tuple[Number, ...] | None = Field(
        None, max_length=1_000_000, description="your own table, with schedule=betas"
    )
    log_snrs: tuple[LogSNR, ...] | None = Field(
        None, max_length=1_000_000, description="log-SNRs at even times, with schedule=log-snr"
    )
    zero_terminal_snr: bool = Field(False, description="rescale a table so that no signal is left at t = 1")
    options: dict[OptionName, Number] = Field(
        {}, max_length=64, description="parameters of the schedule, such as beta_max or sigma_max"
    )

    _added: ClassVar[tuple[str, ...]] = ("kind",)


class DenoiserConfig(_Section):
    """What the network predicts."""

    target: TargetName | None = Field(
        None,
        description="the output; categorical: probabilities of a pixel's 256 values; None: edm, or x0 where a patch "
        "has as many numbers as the network is wide",
    )
    sigma_data: float | None = Field(None, ge=1e-4, le=1e4, description="root mean square of the data; None: measured")
    learned_variance: bool = Field(False, description="predict the reverse variance too (loss=hybrid or bound)")
    score_scale: Literal["unit", "state"] = Field(
        "unit", description="for target=score: unit, of x_t at unit scale; state, of x_t itself, as in old models"
    )

    @field_validator("target", mode="before")
    @classmethod
    def _name_of_today(cls, name: Any) -> Any:
        """Saved models may hold the old name of "categorical"."""
        return CATEGORICAL if name == FIRST_CATEGORICAL else name

    @model_serializer(mode="wrap")
    def _as_saved(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omits `score_scale` for other targets, which keeps the fingerprints of older models."""
        values: dict[str, Any] = dump(self)
        if self.target != "score":
            del values["score_scale"]
        return values


class ObjectiveConfig(_Section):
    """The loss."""

    loss: LossName = Field(
        "error", description="weighted error; the variational bound in T steps or in continuous time; IDDPM's L_hybrid"
    )
    weighting: WeightingName = Field("edm", description="weight of the error at a noise level; simple is L_simple")
    gamma: float = Field(5.0, gt=0, le=1e6, description="for weighting=min-snr")
    bias: float = Field(2.0, ge=-100, le=100, description="for weighting=sigmoid")
    variance: Literal["small", "large", "learned"] = Field("small", description="reverse variance, for loss=bound")
    times: TimesName = Field("log-normal", description="distribution of the training times")
    mean: float = Field(-0.8, ge=-50, le=50, description="of ln(sigma / alpha), for times=log-normal")
    std: float = Field(1.2, gt=0, le=50, description="of ln(sigma / alpha), for times=log-normal")
    draw: DrawName = Field("low-discrepancy", description="how the times of one batch depend on each other")
    importance: bool = Field(False, description="loss-aware importance sampling of the times")
    jumps: int = Field(
        1, ge=1, le=MOST_JUMPS, description="of a student: the evaluations that a sample is to take, 1, 2, 4 ..."
    )
    guidance: float = Field(1.0, ge=0, le=100, description="of a student: the teacher's guidance, learnt with it")
    paths: int | None = Field(
        None,
        ge=1,
        le=10**8,
        description="of the teacher, drawn first, for paths and adversarial; None: from the time or the steps",
    )

    to_data: float = Field(
        0.5, ge=0, le=1, description="for loss=solution: the share of jumps that end at the data; 1 is ECT's"
    )

    _added: ClassVar[tuple[str, ...]] = ("jumps", "guidance", "paths", "to_data")


class NetworkConfig(_Section):
    """The network."""

    kind: NetworkName = Field(
        "unet", description="unet2d is DDPM's network as in diffusers; mlp: points; transformer: text; vocoder: MDCT"
    )
    patch: int | None = Field(
        None,
        ge=1,
        le=64,
        description="side of the patches folded by the stem; None: 2 from 16 pixels, 4 from 48, 8 from 96",
    )
    channels: tuple[Channels, ...] | None = Field(
        None, min_length=1, max_length=13, description="channels at each resolution; None: from the image size"
    )
    width: float = Field(1.0, gt=0, le=16, description="factor for the channels chosen from the image size")
    blocks: int = Field(1, ge=1, le=32, description="residual blocks per resolution and direction")
    attention: tuple[Stage, ...] | None = Field(
        None, max_length=13, description="stages with attention, 0 the highest resolution; None: where it is cheap"
    )
    head: int = Field(0, ge=0, le=4096, description="channels per pixel of a last layer at full resolution; 0: none")
    kernel: int = Field(0, ge=0, le=63, description="side of an input filter predicted for each pixel, odd; 0: none")
    values: bool = Field(False, description="features of the values a picture has, for denoiser.target=categorical")
    fourier: tuple[Octave, ...] = Field(
        (), max_length=25, description="n, m ...: Fourier features of 2^n pi x of the input; VDM has 7,8"
    )
    inpaint: bool = Field(
        False, description="input what is known of a picture, with its mask; trained with random masks"
    )
    jumps: bool = Field(
        False, description="input the noise level to reach too, as a flow map does: `undiffuse distill` trains one"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks; depends on the number of processes")
    span: int = Field(
        0, ge=0, le=65_536, description="tokens that a transformer writes together, in order; 0: all, in any order"
    )
    text: TextName = Field("words", description="captions as words learnt with the network, or by a frozen encoder")
    tokens: int = Field(16, ge=1, le=256, description="most words, or word pieces, of a caption")
    options: dict[OptionName, Option] = Field(
        {}, max_length=64, description="for kind=unet2d, by diffusers' names; bands, that a vocoder found in its data"
    )

    @field_validator("options", mode="after")
    @classmethod
    def _sides_of_today(cls, options: dict[str, Any], about: ValidationInfo) -> dict[str, Any]:
        """Saved rivals may hold the size of their pictures by older names, of which one is an option now."""
        if about.data.get("kind") not in RIVALS or "height" not in options:
            return options
        new = {"height": "rows", "width": "columns"}
        return {new.get(name, name): value for name, value in options.items()}

    _added: ClassVar[tuple[str, ...]] = ("inpaint", "jumps", "span", "text", "tokens")


class TrainingConfig(_Section):
    """The optimisation."""

    steps: int | None = Field(None, ge=1, le=MANY, description="optimiser steps; None with minutes=None: 20000")
    minutes: float | None = Field(
        None, gt=0, le=1e7, description="wall-clock budget; the learning rate decays to fit it"
    )
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="cpu: minutes of CPU time of this process, of which other work on the machine takes nothing"
    )
    batch_size: int = Field(64, ge=1, le=2**20, description="images per step, over all processes and micro-batches")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="muon: for matrices, and AdamW for the rest")
    learning_rate: float = Field(6e-3, gt=0, le=1e30, description="the peak")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="of the optimiser")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), description="of AdamW")
    warmup: int = Field(100, ge=0, le=MANY, description="steps of linear warm-up")
    decay: float = Field(0.6, ge=0, le=1, description="the last share of the run, over which the rate falls to 0")
    clip: float = Field(1.0, gt=0, le=1e20, description="largest norm of the gradient")
    accumulation: int = Field(1, ge=1, le=2**20, description="micro-batches per step")
    ema: float = Field(0.05, gt=0, lt=0.28, description="width of the weight average, relative to the run's length")
    conditional: bool = Field(True, description="condition on classes and captions if the data has them")
    condition: Literal["all", "labels", "sentences"] = Field(
        "all", description="what of the data to condition on: classes, captions or both"
    )
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of labels and captions dropped, for unconditional use"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on a GPU, else fp32"
    )
    compile: bool = Field(False, description="torch.compile the network")
    seed: int = Field(0, ge=0, lt=2**32, description="determines everything random")
    base: str | None = Field(None, description="fine-tune this model, a run, a model folder or a built-in name")
    teacher: str | None = Field(
        None, description="for loss=matching: the model that the student, the base, learns from"
    )
    lora: int = Field(0, ge=0, le=1024, description="rank of the adapters to train in place of the base's weights")
    lora_alpha: float | None = Field(
        None, gt=0, le=1e6, description="scale of the adapters times their rank; None: the rank"
    )
    log_every: int = Field(10, ge=1, le=MANY, description="steps between metrics")
    checkpoint_every: int = Field(250, ge=1, le=MANY, description="steps between checkpoints")
    keep: int = Field(2, ge=1, le=MANY, description="checkpoints kept")
    preview_every: int = Field(250, ge=1, le=MANY, description="steps between preview grids")

    _added: ClassVar[tuple[str, ...]] = ("clock", "condition", "base", "teacher", "lora", "lora_alpha")

    @property
    def lora_scale(self) -> float:
        """alpha / rank: what B A is multiplied by (`undiffuse.networks.lora`)."""
        return 1.0 if self.lora_alpha is None else self.lora_alpha / max(self.lora, 1)


class Config(_Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    process: ProcessConfig = ProcessConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

"""Fine-tuning: every run starts as the base's answer, bit for bit, and ends the same however it was interrupted."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, ignore, run_state
from safetensors.torch import load_file
from torch import nn

from undiffuse.adapters import base_fingerprint
from undiffuse.bases import base_config
from undiffuse.build import make_denoiser, make_network
from undiffuse.card import ConditionFacts, DataFacts, read_card
from undiffuse.conditions import Labels
from undiffuse.config import Config, make_config, preset
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import Model, checkpoints, load
from undiffuse.networks import PixelUNet, UNet
from undiffuse.networks.inputs import add_inputs
from undiffuse.training import run as run_module
from undiffuse.training import train
from undiffuse.training.loop import training_steps
from undiffuse.training.transfer import transfer

Values = dict[str, Any]
SHAPE = (8, 8, 1)
KINDS: dict[str, Values] = {
    "unet": {"network.patch": 2, "network.channels": (8, 16), "network.attention": ()},
    "unet2d": {
        "network.kind": "unet2d",
        "network.patch": 1,
        "network.channels": (8, 16),
        "network.attention": (),
        "network.options": {"norm_num_groups": 4},
    },
}
OLD, NEW = ("cat", "dog", "cow"), ("oak", "elm")


def facts(classes: tuple[str, ...]) -> DataFacts:
    return DataFacts("data", SHAPE, 10, classes, tuple(1 / len(classes) for _ in classes))


def made(kind: str, classes: tuple[str, ...], augment: float = 0.0, seed: int = 0) -> tuple[Config, nn.Module]:
    """A network with random weights, zero ones too."""
    config = make_config({**KINDS[kind], "denoiser.sigma_data": 0.5, "data.augment": augment})
    network = make_network(config, 1, facts(classes).takes)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return config, network


def base_of(kind: str, classes: tuple[str, ...], dtype: torch.dtype = torch.float32, augment: float = 0.0) -> Model:
    config, network = made(kind, classes, augment)
    return Model("base", config, facts(classes), make_denoiser(config, network.to(dtype)), {})


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 1, 8, 8, generator=generator, dtype=dtype), torch.randn(4, generator=generator, dtype=dtype)


def labels(classes: int, index: int | None = None) -> Labels | None:
    if not classes:
        return None
    return Labels(torch.arange(4) % classes if index is None else torch.full((4,), index), classes)


each_kind = pytest.mark.parametrize("kind", list(KINDS))


@each_kind
@pytest.mark.parametrize("classes", [(), OLD])
def test_with_the_same_condition_the_start_is_the_base(kind: str, classes: tuple[str, ...]) -> None:
    """Bit for bit, conditional and unconditional."""
    base, (_, network) = base_of(kind, classes), made(kind, classes, seed=7)
    origin = transfer(network, base, facts(classes))
    assert (origin.new, origin.left, origin.fingerprint) == ((), (), base_fingerprint(base))
    for index in (None, len(classes)):
        condition = labels(len(classes), index)
        assert torch.equal(network(*inputs(), condition), base.network(*inputs(), condition))


@each_kind
@pytest.mark.parametrize("classes", [(), OLD, ("ash", "fir")])
def test_new_classes_all_start_as_the_unconditional_base(kind: str, classes: tuple[str, ...]) -> None:
    """Bit for bit, for each of them and for any; nothing else is new."""
    base, (_, network) = base_of(kind, classes), made(kind, NEW, seed=7)
    origin = transfer(network, base, facts(NEW))
    expected = base.network(*inputs(), labels(len(classes), len(classes)))
    for index in range(len(NEW) + 1):
        assert torch.equal(network(*inputs(), labels(len(NEW), index)), expected)
    encoder = "conditioning.label.weight" if kind == "unet" else "class_embedding.weight"
    assert (origin.new, origin.left) == ((encoder,), (encoder,) if classes else ())


@each_kind
def test_without_classes_the_start_is_the_unconditional_base(kind: str) -> None:
    """To 1e-12 in float64: what the base added to its conditioning is now in a bias."""
    base, (_, network) = base_of(kind, OLD, torch.float64), made(kind, (), seed=7)
    origin = transfer(network.double(), base, facts(()))
    x, log_snr = inputs(torch.float64)
    expected = base.network(x, log_snr, labels(3, 3))
    torch.testing.assert_close(network(x, log_snr, None), expected, rtol=0, atol=1e-12)
    assert origin.new == (("conditioning.layers.2.bias",) if kind == "unet" else ())


def test_augmentation_labels_come_and_go_without_an_effect() -> None:
    """Bit for bit, on samples."""
    for before, after in ((0.0, 0.1), (0.1, 0.0), (0.1, 0.2)):
        base, (_, network) = base_of("unet", OLD, augment=before), made("unet", OLD, augment=after, seed=7)
        origin = transfer(network, base, facts(OLD))
        assert torch.equal(network(*inputs(), labels(3)), base.network(*inputs(), labels(3)))
        name = ("conditioning.augmentation.weight",)
        assert (origin.new, origin.left) == (name if not before else (), name if not after else ())
        assert before or not network.get_parameter(name[0]).any()


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("dims", [1, 2])
def test_added_inputs_start_without_an_effect(patch: int, dims: int) -> None:
    """Bit for bit, whatever they hold; their weights learn."""
    torch.manual_seed(0)
    network = UNet(3, 3, dims=dims, patch=patch, channels=(16, 32), blocks=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, more = (torch.randn(2, channels, *(8,) * dims) for channels in (3, 4))
    expected = network(x, torch.zeros(2))
    add_inputs(network, 4)
    answer = network(torch.cat([x, more], 1), torch.zeros(2))
    assert torch.equal(answer, expected)
    answer.square().sum().backward()
    gradient = network.stem.weight.grad
    assert isinstance(gradient, torch.Tensor) and gradient[:, 3 * patch**dims :].flatten(2).any(2).all()


def test_added_inputs_of_the_other_networks() -> None:
    _, network = made("unet2d", ())
    x, log_snr = inputs()
    expected = network(x, log_snr)
    add_inputs(network, 2)  # type: ignore[arg-type]
    assert torch.equal(network(torch.cat([x, x, x], 1), log_snr), expected)
    with pytest.raises(ValueError, match="takes no more inputs"):
        add_inputs(PixelUNet(1, 1, channels=(8,), attention=(), head=8), 1)


# Runs.

MODES: dict[str, Values] = {"full": {}, "lora": {"training.lora": 2}, "augmented": {"data.augment": 0.3}}
each_mode = pytest.mark.parametrize("mode", list(MODES))


def settings(tiny: Values, base: Path, mode: str) -> Values:
    return {**tiny, "training.base": str(base), **MODES[mode]}


@each_mode
def test_a_run_starts_with_the_weights_of_the_base(tiny: Values, whole: Path, tmp_path: Path, mode: str) -> None:
    """At a rate that moves nothing, what is saved is the base, bit for bit, and says where it comes from."""
    values = {**settings(tiny, whole, mode), "training.learning_rate": 1e-30, "training.steps": 2}
    said: list[str] = []
    train(values, tmp_path / "run", report=said.append)
    base, model = load(whole), load(tmp_path / "run")
    for name, tensor in base.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    recorded = json.loads((tmp_path / "run/run.json").read_text())["base"]
    card = read_card(checkpoints(tmp_path / "run")[-1])
    assert card.training["base"] == {"name": str(whole), "fingerprint": base_fingerprint(base)}
    assert recorded["fingerprint"] == base_fingerprint(base)
    assert said[1].startswith(f"starts from {whole} ({recorded['fingerprint'][:12]})")
    assert (card.config.network, card.config.process) == (base.config.network, base.config.process)
    assert card.config.denoiser == base.config.denoiser


@each_mode
def test_a_run_goes_on_without_its_base_as_if_uninterrupted(
    tiny: Values, whole: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, averages, optimiser, previews and the adapter's file: the same bytes, and the base is gone by then."""
    base = tmp_path / "base"
    shutil.copytree(checkpoints(whole)[-1], base)
    train(settings(tiny, base, mode), tmp_path / "once", report=ignore)
    once = run_state(tmp_path / "once")
    adapters = adapters_of(tmp_path / "once")
    assert len(adapters) == (2 if mode == "lora" else 0)

    def killed(*arguments: Any) -> Any:
        for step in training_steps(*arguments):
            if step.number == 8:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(run_module, "training_steps", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings(tiny, base, mode), tmp_path / "twice", report=ignore)
    monkeypatch.undo()
    shutil.rmtree(base)
    train({}, tmp_path / "twice", resume=True, report=ignore)
    assert run_state(tmp_path / "twice") == once
    assert adapters_of(tmp_path / "twice") == adapters


def adapters_of(run: Path) -> dict[str, Any]:
    """The tensors of the adapters that a run has written, as bytes."""
    files = {path.parent.name: load_file(path) for path in run.glob("checkpoints/*/adapter.safetensors")}
    return {step: {name: tensor.numpy().tobytes() for name, tensor in file.items()} for step, file in files.items()}


def test_before_its_first_checkpoint_a_run_needs_the_same_base(tiny: Values, whole: Path, tmp_path: Path) -> None:
    """Another model of that name is refused."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(checkpoints(whole)[-1], base)
    train({**settings(tiny, base, "full"), "training.steps": 1}, run, report=ignore)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(base)
    shutil.copytree(checkpoints(whole)[-2], base)
    with pytest.raises(UsageError, match=r"is another model than .* began with"):
        train({}, run, resume=True, report=ignore)
    shutil.rmtree(base)
    shutil.copytree(checkpoints(whole)[-1], base)
    assert train({}, run, resume=True, report=ignore).finished


def test_data_are_brought_to_the_size_of_the_base(whole: Path, tmp_path: Path) -> None:
    """Colour pictures of another size become grey ones of the base's; other classes are learnt anew."""
    images = np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(20) % 2, classes=np.array(NEW))
    values = {key: value for key, value in TINY.items() if not key.startswith("network")}
    values |= {"data.source": str(tmp_path / "x.npz"), "training.base": str(whole), "training.steps": 2}
    train(values, tmp_path / "run", report=ignore)
    model = load(tmp_path / "run")
    assert model.data.shape == (16, 16, 1) and model.data.classes == NEW
    assert model.config.denoiser.sigma_data == load(whole).config.denoiser.sigma_data
    assert model.config.training.warmup == TINY["training.warmup"] != preset("finetune")["training.warmup"]


def test_the_preset_is_what_a_fine_tuning_has_unless_set(data: str, whole: Path) -> None:
    config = make_config({"training.base": str(whole)}, base_config({"training.base": str(whole)}))
    for key, value in preset("finetune").items():
        assert getattr(config.training, key.removeprefix("training.")) == value


def test_a_likelihood_model_is_fine_tuned_with_its_own_loss(tiny: Values, likelihood: Path, tmp_path: Path) -> None:
    """Target, schedule and prior of the values are kept; the base has no classes, the run does."""
    values = {key: value for key, value in tiny.items() if not key.startswith("network")}
    values |= {"training.base": str(likelihood), "training.steps": 1, "training.learning_rate": 1e-30}
    train(values, tmp_path / "run", report=ignore)
    model, base = load(tmp_path / "run"), load(likelihood)
    x, log_snr = torch.randn(3, 1, 16, 16), torch.randn(3)
    assert torch.equal(model.network(x, log_snr, model.condition(range(3))), base.network(x, log_snr, None))
    assert model.config.objective.loss == base.config.objective.loss == "continuous-bound"


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nothing"], "no model 'nothing'"),
        (["--from", "BASE", "--preset", "best"], "--preset best sets network.width = 1.5, and --from keeps"),
        (["--lora", "4"], "training.lora adapts the weights of a model"),
        (["--from", "BASE", "--resume", "--out", "x"], "--from begins a run and --resume continues"),
        (["--from", "BASE", "--set", "network.channels=8,32"], "the weights of BASE are for (8, 16)"),
        (["--from", "BASE", "--set", "data.channels=3"], "BASE is for pictures of 1"),
        (["--from", "BASE", "--lora", "-1"], "training.lora = -1"),
        (["--from", "BASE", "--set", "denoiser.learned_variance=true"], "out.weight is 4x8x3x3 there and 8x8x3x3 here"),
    ],
)
def test_a_mistake_gets_one_line(command: Command, whole: Path, data: str, arguments: list[str], message: str) -> None:
    """And leaves nothing behind."""
    arguments = [str(whole) if argument == "BASE" else argument for argument in arguments]
    code, _, error = command("train", data, "--steps", 1, *arguments)
    assert code == 2 and error.count("\n") == 1, error
    assert message.replace("BASE", str(whole)) in error
    assert not Path("runs").exists() and not Path("x").exists()


def test_another_base_is_no_way_to_resume(tiny: Values, whole: Path, tmp_path: Path) -> None:
    values = {**tiny, "training.steps": 1}
    train(values, tmp_path / "run", report=ignore)
    with pytest.raises(UsageError, match=r"training\.base = None"):
        train({"training.base": str(whole)}, tmp_path / "run", resume=True, report=ignore)


def test_a_condition_of_another_kind_needs_an_encoder_that_can_start(whole: Path) -> None:
    """One without `start_at` is refused with that advice, for a base that has a condition already."""

    class Odd(nn.Linear):
        pass

    base, (_, network) = base_of("unet", OLD), made("unet", ())
    assert isinstance(network, UNet)
    network.conditioning.encoders = ("odd",)
    network.conditioning.add_module("odd", Odd(2, 32))
    odd = DataFacts("data", SHAPE, 10, condition=ConditionFacts("odd", {}))
    with pytest.raises(UsageError, match="give it a method start_at"):
        transfer(network, base, odd)
    origin = transfer(network, base_of("unet", ()), odd)  # from an unconditional base its last layer starts at 0
    assert origin.new == ("conditioning.odd.weight", "conditioning.odd.bias")
    assert not network.conditioning.odd.weight.any()  # type: ignore[union-attr, operator]


def test_weights_of_another_network_are_refused() -> None:
    _, network = made("unet2d", OLD)
    with pytest.raises(UsageError, match="base is of another network than this run"):
        transfer(network, base_of("unet", OLD), facts(OLD))


def test_the_record_of_the_base_must_be_whole(tiny: Values, whole: Path, tmp_path: Path) -> None:
    train({**settings(tiny, whole, "lora"), "training.steps": 1}, tmp_path / "run", report=ignore)
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    for base in ({"name": 1}, None):
        path.write_text(json.dumps({**record, "base": base}))
        with pytest.raises(UndiffuseError, match="record of the base"):
            train({}, tmp_path / "run", resume=True, report=ignore)

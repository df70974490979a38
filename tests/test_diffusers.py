"""Folders of diffusers, read and written: networks, schedules and samples against diffusers itself."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, ignore
from pipelines import diffusers, make_unet, save
from references import walk
from safetensors.torch import load_file, save_file
from torch import Tensor

from undiffuse.build import default_network, make_denoiser, make_network, make_process, step_log_snrs
from undiffuse.conditions import Labels
from undiffuse.config import Config, NetworkConfig, make_config, parse_settings
from undiffuse.errors import UsageError
from undiffuse.generate import sample
from undiffuse.guidance import clip
from undiffuse.interop.diffusers import WEIGHTS, export_diffusers, import_diffusers, needs_adapter
from undiffuse.model import Model, load, with_process
from undiffuse.networks import UNet2D
from undiffuse.networks.unet2d import Options
from undiffuse.process import Table, cosine, linear, scaled_linear, zero_terminal_snr
from undiffuse.sampling import SAMPLERS, Step, ancestral, ddim, make_grid
from undiffuse.training import train

import_module("undiffuse.interop.adapter")  # as whoever loads a folder with it must


def imported(folder: Path) -> Model:
    """The model that comes of it, in float64."""
    model = load(import_diffusers(folder, folder.with_name("imported")))
    model.network.double()
    return model


def random_(network: torch.nn.Module) -> None:
    """Weights that are not zero, in place."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)


DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
UNETS: dict[str, dict[str, Any]] = {
    "attention": {},
    "plain": {"attention": (), "add_attention": False},
    "as google/ddpm-cifar10-32": {**DDPM, "attention_head_dim": None, "attention": (1,), "layers_per_block": 2},
    "rectangular, three levels": {"sample_size": (8, 12), "block_out_channels": (8, 16, 24), "attention": (0, 2)},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "in_channels": 3, "out_channels": 3},
    "scale and shift, norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "classes": {"num_class_embeds": 3},
    "residual resampling": {"downsample_type": "resnet", "upsample_type": "resnet", "attention": (0, 1)},
    "the rest": {
        "center_input_sample": True,
        "act_fn": "gelu",
        "mid_block_scale_factor": 1.4,
        "time_embedding_dim": 20,
        "attention_head_dim": 5,
        "block_out_channels": (12, 16),
    },
}


@pytest.mark.parametrize("options", UNETS.values(), ids=UNETS)
def test_networks_are_those_of_diffusers(options: dict[str, Any], tmp_path: Path) -> None:
    """The same weights give the same output, at every timestep and for every class, to the digits of float64."""
    theirs = make_unet(**options)
    model = imported(save(tmp_path / "pipeline", theirs))
    theirs.double()
    height, width, channels = model.data.shape
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    x = torch.randn(5, channels, height, width, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 0]) if model.data.classes else None
    log_snr = step_log_snrs(model.denoiser.process.schedule)[timesteps + 1]
    with torch.no_grad():
        wanted = theirs(x, timesteps, class_labels=labels).sample
        got = model.network(x, log_snr, labels if labels is None else Labels(labels, 3))
        assert (wanted - got).abs().max() < 1e-12 < 0.1 < wanted.std()
        if labels is not None:
            theirs.class_embedding.weight.zero_()
            without = theirs(x, timesteps, class_labels=labels).sample
            anything = model.network(x, log_snr, Labels(labels, 3).dropped())
            assert (anything - without).abs().max() < 1e-12 and not torch.allclose(anything, got)


TABLES = {
    "linear": linear(),
    "cosine": cosine(),
    "no signal": zero_terminal_snr(linear()),
    "scaled": scaled_linear(),
    "4000": linear(4000),
    "1": linear(1),
    "3": Table([0.5, 0.5, 1.0]),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_timesteps_are_exact_at_steps_and_near_between(table: Table) -> None:
    """A table's own log-SNRs, in float32, are timesteps exactly; between them they are as its times are."""
    network = UNet2D(
        1, 1, step_log_snrs(table), channels=(8,), blocks=1, attention=(), options=Options(norm_num_groups=1)
    )
    network.log_snr = step_log_snrs(table)
    assert torch.equal(network.timestep(step_log_snrs(table)[1:]), torch.arange(float(table.steps)))
    last = 1 - 1 / table.steps if table.betas[-1] == 1 else 1  # there the log-SNR goes to minus infinity
    t = torch.linspace(1 / table.steps, last, 5000, dtype=torch.float64)
    timesteps = network.timestep(table.log_snr(t).float())
    assert (timesteps - (t * table.steps - 1)).abs().max() < 3e-3
    assert network.timestep(torch.tensor([30.0, -30.0])).tolist() == [0, table.steps - 1]


def ours(model: Model, rule: Step, steps: int) -> Tensor:
    """Two samples, clipped, in float64, with noise from a generator in the order of diffusers."""
    height, width, channels = model.data.shape
    process, generator = model.denoiser.process, torch.Generator().manual_seed(1)

    def noise(step: int) -> Tensor:
        return torch.randn((2, channels, height, width), generator=generator, dtype=torch.float64)

    grid = make_grid("trailing", process.schedule, steps)
    with torch.no_grad():
        *_, last = walk(clip(model.denoiser.bind(model.unconditional(2)), process), process, grid, rule, noise)
    return last.x


def theirs(pipeline: Any, model: Model, steps: int, **options: Any) -> Tensor:
    """The same of a pipeline, whose table is given the digits of float64 (its own has those of float32)."""
    table = model.denoiser.process.schedule
    assert isinstance(table, Table)
    assert torch.allclose(pipeline.scheduler.alphas_cumprod.double(), table.alpha_bar[1:], rtol=1e-4, atol=0)
    pipeline.scheduler.alphas_cumprod = table.alpha_bar[1:]
    pipeline.unet.double()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=steps, output_type="pt", **options).images
    return 2 * images - 1


RULES: dict[str, tuple[str, Step, dict[str, Any]]] = {
    "DDIM": ("DDIMPipeline", ddim, {}),
    "DDIM, eta 0.5": ("DDIMPipeline", partial(ddim, eta=0.5), {"eta": 0.5}),
    "DDIM, eta 1": ("DDIMPipeline", partial(ddim, eta=1.0), {"eta": 1.0}),
    "DDPM": ("DDPMPipeline", ancestral, {}),
}


def check_samples(folder: Path, model: Model, steps: int = 10) -> None:
    """Every pipeline on the folder draws what the model draws here, from the same noise."""
    for name, rule, options in RULES.values():
        if name == "DDIMPipeline":  # DDIM's code keeps the noise of before the clipping unless it is told
            options = {**options, "use_clipped_model_output": True}
        pipeline = getattr(diffusers, name).from_pretrained(folder)
        drawn = ours(model, rule, steps)
        assert (theirs(pipeline, model, steps, **options) - drawn).abs().max() < 1e-8, name
        assert drawn.std() > 0.1


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ],
    ids=["eps linear", "x0 cosine", "v without signal"],
)
def test_imported_models_draw_what_their_pipelines_draw(scheduler: dict[str, Any], tmp_path: Path) -> None:
    """Import, then sample: equal to the pipeline on the folder it came from; and to that on the folder it goes to."""
    folder = save(tmp_path / "pipeline", timestep_spacing="trailing", **scheduler)
    model = imported(folder)
    if "rescale_betas_zero_snr" not in scheduler:  # which float32 does with fewer digits than the test asks for
        check_samples(folder, model)
    assert needs_adapter(model) is None
    check_samples(export_diffusers(load(tmp_path / "imported"), tmp_path / "exported"), model)


def test_a_learnt_variance(tmp_path: Path) -> None:
    """Twice the channels and learned_range: the variance too is the same, there and back.

    All steps are taken, as then the last is at timestep 0, the only one where diffusers adds no noise.
    """
    options = {"variance_type": "learned_range", "num_train_timesteps": 8, "beta_end": 0.5}
    folder = save(tmp_path / "pipeline", make_unet(out_channels=2), **options)
    model = imported(folder)
    drawn = ours(model, SAMPLERS["ddpm-learned"].step, 8)
    for place in (folder, export_diffusers(load(tmp_path / "imported"), tmp_path / "exported")):
        assert (theirs(diffusers.DDPMPipeline.from_pretrained(place), model, 8) - drawn).abs().max() < 1e-8


SCHEDULERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "linear of 250": {"num_train_timesteps": 250, "beta_start": 0.001, "beta_end": 0.08},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "laplace": {"beta_schedule": "laplace"},
    "betas": {"trained_betas": [0.1, 0.2, 0.7], "num_train_timesteps": 3},
}


@pytest.mark.parametrize("options", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedules_are_those_of_diffusers(options: dict[str, Any], tmp_path: Path) -> None:
    """The same betas to the digits of float32, by name where they have one, and again after an export."""
    wanted = diffusers.DDPMScheduler(**options).betas.double()
    model = imported(save(tmp_path / "pipeline", **options))
    table = model.denoiser.process.schedule
    assert isinstance(table, Table) and torch.allclose(table.betas, wanted, rtol=1e-6, atol=0)
    named = "trained_betas" not in options and options.get("beta_schedule") != "laplace"
    assert (model.config.process.schedule != "betas") == named
    again = load(import_diffusers(export_diffusers(model, tmp_path / "exported"), tmp_path / "again"))
    assert torch.allclose(again.denoiser.process.schedule.betas, table.betas, rtol=1e-12, atol=0)


def test_layouts_of_folders(tmp_path: Path) -> None:
    """Flat as Google published them, a network alone, shards, half precision, and names of early versions."""
    folder = save(tmp_path / "pipeline", beta_end=0.01)
    wanted = sample(import_diffusers(folder, tmp_path / "one"), 1, steps=2)
    assert (sample(import_diffusers(folder / "unet", tmp_path / "part"), 1, steps=2) == wanted).all()
    for path in (*folder.glob("unet/*"), *folder.glob("scheduler/*")):
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    assert (sample(import_diffusers(folder, tmp_path / "flat"), 1, steps=2) == wanted).all()
    (folder / "model_index.json").unlink()
    weights = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for now, before in old.items():
        weights = {name.replace(f".{now}.", f".{before}."): tensor for name, tensor in weights.items()}
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert (sample(import_diffusers(folder, tmp_path / "shards"), 1, steps=2) == wanted).all()
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / WEIGHTS)
    half = load(import_diffusers(folder, tmp_path / "half"))
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    assert abs(sample(half, 1, steps=2).astype(int) - wanted).max() <= 2


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps of a unet2d as DDPM trains it."""
    values = {
        **tiny,
        "training.steps": 4,
        "training.conditional": False,
        "network.kind": "unet2d",
        "network.attention": None,
        "denoiser.target": "eps",
        "denoiser.sigma_data": 1.0,
        "process.schedule": "linear",
        "objective.weighting": "simple",
        "objective.times": "uniform",
    }
    run = tmp_path_factory.mktemp("unet2d") / "run"
    train(values, run, report=ignore)
    return run


def test_a_trained_model_goes_and_comes_back(trained: Path, tmp_path: Path) -> None:
    """Export, then import: the same weights and samples; and pipelines draw the same from the export."""
    model = load(trained)
    assert model.config.network.options == {"norm_num_groups": 2} and model.config.network.attention == (1,)
    folder = export_diffusers(model, tmp_path / "exported")
    again = load(import_diffusers(folder, tmp_path / "again"))
    for name, weight in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], weight)
    assert (sample(again, 2, steps=3) == sample(model, 2, steps=3)).all()
    assert again.data.shape == model.data.shape and again.config.process.schedule == "linear"
    model.network.double()
    check_samples(folder, model, steps=5)


def test_an_export_needs_no_undiffuse(trained: Path, tmp_path: Path) -> None:
    """A process that cannot import undiffuse loads and runs it."""
    folder = export_diffusers(load(trained), tmp_path / "exported")
    code = (
        "import sys; sys.modules['undiffuse'] = None; import diffusers\n"
        "for kind in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):\n"
        "    print(kind.from_pretrained(sys.argv[1])(num_inference_steps=2, output_type='np').images.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "(1, 16, 16, 1)\n" * 2, done.stderr


@pytest.mark.parametrize("process", [{}, {"schedule": "linear"}, {"schedule": "ve"}], ids=["cosine", "linear", "ve"])
def test_our_networks_run_in_pipelines(process: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """The adapter draws what the model draws; one that learnt on a schedule without steps, what it does on cosine."""
    model = load(whole)
    random_(model.network)  # its last layer is still next to zero
    assert "unet2d" not in model.config.network.kind and "UNet2DModel" in str(needs_adapter(model))
    folder = export_diffusers(with_process(model, **process) if process else model, tmp_path / "exported")
    stepped = {"schedule": "cosine"} if process.get("schedule") == "ve" else process
    model.network.double()
    check_samples(folder, with_process(model, **stepped) if stepped else model, steps=5)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "saved")
    x, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 3])
    for unet in (pipeline.unet, diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved").unet):
        with torch.no_grad():
            answers = [unet(x, 700, class_labels=given).sample for given in (labels, torch.tensor([0, 0, 3]), None)]
            assert torch.equal(unet(x, torch.tensor([700] * 3), labels, return_dict=False)[0], answers[0])
        same = [[torch.equal(a, b) for a, b in zip(answers[0], other, strict=True)] for other in answers[1:]]
        assert same == [[True, False, True], [False, False, True]]


def test_why_not_a_unet2dmodel(trained: Path, tmp_path: Path) -> None:
    """A unet2d that diffusers' schedulers cannot be told about goes with the adapter, and the reason is said."""
    model = load(trained)
    for changed, reason in (({"target": "edm"}, "denoiser.target=edm"), ({"sigma_data": 0.5}, "sigma_data=0.5")):
        config = model.config.model_copy(update={"denoiser": model.config.denoiser.model_copy(update=changed)})
        other = dataclasses.replace(model, config=config, denoiser=make_denoiser(config, model.network))
        assert reason in str(needs_adapter(other))
        folder = export_diffusers(other, tmp_path / reason)
        other.network.double()
        check_samples(folder, other, steps=5)
        other.network.float()
    for process in ({"schedule": "cosine"}, {"schedule": "edm"}):
        with pytest.raises(UsageError, match="another process"):
            export_diffusers(with_process(model, **process), tmp_path / "no")


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter says what to install."""
    monkeypatch.delitem(sys.modules, "undiffuse.interop.adapter", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r'pip install "undiffuse\[diffusers\]"'):
        import_module("undiffuse.interop.adapter")


def test_the_commands(command: Command, whole: Path, tmp_path: Path) -> None:
    """Import, sample, export, and back."""
    folder = save(tmp_path / "pipeline", make_unet(num_class_embeds=3))
    code, out, err = command("import", folder, "--out", "models/one")
    assert (code, err) == (0, "") and "undiffuse sample models/one" in out
    assert command("sample", "models/one", "-n", 3, "--steps", 2, "--sampler", "ddim", "--class", 2)[0] == 0
    code, out, err = command("export", "models/one", "--format", "diffusers", "--out", "there")
    assert (code, err) == (0, "") and "class_labels" in out and "from_pretrained" in out and "adapter" not in out
    code, out, _ = command("export", whole, "--out", "ours")
    assert code == 0 and "import undiffuse.interop.adapter" in out
    for arguments, message in (
        (("import", folder, "--out", "there"), "there exists already"),
        (("import", "nowhere", "--out", "new"), "nowhere is not a folder"),
        (("import", "ours", "--out", "new"), "class Adapter"),
        (("export", "models/one", "--out", "there"), "there exists already"),
        (("export", "models/one", "--out", "new", "--format", "keras"), "diffusers, onnx"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1


def _json(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return change


def _weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "unet" / WEIGHTS)
        change(weights)
        save_file(weights, folder / "unet" / WEIGHTS)

    return apply


_unet, _schedule = partial(_json, "unet/config.json"), partial(_json, "scheduler/scheduler_config.json")
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (
        lambda folder: (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin"),
        "is a pickle",
    ),
    "no weights": (lambda folder: (folder / "unet" / WEIGHTS).unlink(), "has no diffusion_pytorch_model.safetensors"),
    "no network": (lambda folder: (folder / "unet" / "config.json").unlink(), "config.json is missing"),
    "no scheduler": (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "no scheduler_config.json"),
    "cut weights": (lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"12345678"), "does not hold the weights"),
    "a weight of another shape": (
        _weights(lambda weights: weights.update({"conv_in.weight": torch.zeros(8, 2, 3, 3)})),
        "conv_in.weight",
    ),
    "a weight missing": (_weights(lambda weights: weights.pop("conv_in.bias")), "conv_in.bias"),
    "a weight too many": (_weights(lambda weights: weights.update(more=torch.zeros(1))), "more"),
    "damaged json": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "cannot read"),
    "json of something else": (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "is damaged"),
    "an incomplete network": (lambda folder: (folder / "unet" / "config.json").write_text("{}"), "sample_size"),
    "more than a network": (_json("model_index.json", vqvae=["diffusers", "VQModel"]), "vqvae too"),
    "another network": (_unet(_class_name="UNet2DConditionModel"), "UNet2DConditionModel"),
    "an unknown option": (_unet(norm_groups=4), "norm_groups: a unet2d has no such option; did you mean norm_num"),
    "Fourier features": (_unet(time_embedding_type="fourier"), "network.options.time_embedding_type = 'fourier'"),
    "classes by number": (_unet(class_embed_type="timestep"), "network.options.class_embed_type"),
    "no groups": (_unet(norm_num_groups=None), "network.options.norm_num_groups"),
    "groups that do not divide": (_unet(norm_num_groups=5), "num_groups"),
    "heads wider than a level": (_unet(attention_head_dim=32), "attention_head_dim = 32"),
    "other blocks": (_unet(down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "SkipDownBlock2D"),
    "unlike ways": (_unet(up_block_types=["UpBlock2D", "UpBlock2D"]), "up_block_types"),
    "latents": (_unet(in_channels=4, out_channels=4), "in_channels = 4"),
    "a size that is none": (_unet(sample_size=[8, 8, 8]), "sample_size = [8, 8, 8]"),
    "a size that does not halve": (_unet(sample_size=9), "multiples of 2"),
    "no steps": (_schedule(num_train_timesteps=0), "num_train_timesteps = 0: input should be greater"),
    "no size": (_unet(sample_size=None), "sample_size"),
    "another scheduler": (_schedule(_class_name="CMStochasticIterativeScheduler"), "CMStochasticIterativeScheduler"),
    "another target": (_schedule(prediction_type="flow_prediction"), "prediction_type = flow_prediction"),
    "another schedule": (_schedule(beta_schedule="laplacian"), "beta_schedule = laplacian"),
    "betas beyond": (_schedule(beta_end=1.0), "beta_end = 1.0"),
    "betas that are none": (_schedule(trained_betas=[0.5, 2.0], num_train_timesteps=2), "beta_2"),
    "betas of another number": (_schedule(trained_betas=[0.5, 0.9]), "trained_betas has 2 numbers"),
    "eps without signal": (_schedule(rescale_betas_zero_snr=True), "eps"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_line(change: Callable[[Path], Any], message: str, command: Command, tmp_path: Path) -> None:
    """Whatever cannot be read is refused in a line that says what and where, and nothing is written."""
    change(save(tmp_path / "pipeline"))
    code, out, err = command("import", "pipeline", "--out", "model")
    assert code in (1, 2) and not out and message in err and len(err.splitlines()) == 1, err
    assert "unexpected" not in err and not Path("model").exists()


def _configure(*settings: str) -> Config:
    config = make_config(parse_settings(["network.kind=unet2d", *settings]))
    return config.model_copy(update={"network": default_network(config.network, (28, 28))})


def test_settings_of_a_unet2d() -> None:
    """Options one by one, none included; defaults that fit; and old cards, which have no kind."""
    config = _configure("network.options.act_fn=gelu", "network.options.attention_head_dim=none")
    assert config.network.options == {"norm_num_groups": 32, "act_fn": "gelu", "attention_head_dim": None}
    assert config.network.patch == 1 and config.network.attention == (1, 2)
    assert isinstance(make_network(config, 1), UNet2D)
    assert NetworkConfig.model_validate({"channels": [8]}).kind == "unet"
    assert make_process(config.process).schedule.steps == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["network.options.norm_groups=3"], "did you mean norm_num_groups"),
        (["network.options.zzz=3"], "no such option; it has act_fn"),
        (["network.options.norm_eps=small"], r"network\.options\.norm_eps = 'small'"),
        (["network.kind=unet", "network.options.norm_eps=1e-6"], "network.kind=unet2d"),
        (["network.patch=2"], r"network\.patch = 2"),
        (["network.channels=8,8,8,8"], "multiples of 8"),
        (["network.channels=4"], "attention_head_dim = 8"),
        (["process.schedule=edm"], r"process\.schedule=edm"),
    ],
)
def test_settings_that_do_not_fit(settings: list[str], message: str) -> None:
    """Each is refused by name, before the run."""
    with pytest.raises(UsageError, match=message):
        make_network(_configure(*settings), 1)

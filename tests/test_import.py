"""What people have of diffusers: bare networks, averaged weights, half precision, any scheduler, damaged files."""

import copy
import json
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from pipelines import diffusers, make_unet, save
from safetensors.torch import load_file, save_file

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.evaluation import density, ode_density
from undiffuse.evaluation.compare import compare
from undiffuse.evaluation.density_report import sentence
from undiffuse.explain import _data
from undiffuse.interop.diffusers import import_diffusers
from undiffuse.interop.weights import WEIGHTS
from undiffuse.model import load
from undiffuse.training import train

SAMPLED = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def checkpoint(run: Path, *parts: str) -> Path:
    """`run`, a pipeline, with a checkpoint-500 as the training scripts leave it: networks named `parts`."""
    folder = save(run, **SAMPLED) / "checkpoint-500"
    for part in parts:
        shutil.copytree(run / "unet", folder / part)
    return folder


def lines_of(folder: Path, out: Path, scheduler: Path | None = None) -> list[str]:
    """What an import says."""
    lines: list[str] = []
    import_diffusers(folder, out, scheduler, lines.append)
    return lines


def bare(folder: Path, tmp_path: Path) -> Path:
    """The network of a pipeline with nothing about it."""
    return Path(shutil.move(folder / "unet", tmp_path / "alone" / "unet"))


@pytest.mark.parametrize("part", ["", "unet"])
def test_the_scheduler_of_the_pipeline_above(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """checkpoint-N and the network in it, by path, from inside, and through a link."""
    folder = checkpoint(tmp_path / "out", "unet") / part
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    for k, way in enumerate((folder, Path(), tmp_path / "linked")):
        lines = lines_of(way, tmp_path / str(k))
        process, target = load(tmp_path / str(k)).config.process, load(tmp_path / str(k)).config.denoiser.target
        assert (process.schedule, process.steps, target) == ("cosine", 100, "v")
        said = "scheduler/scheduler_config.json: 100 steps, squaredcos_cap_v2 betas, prediction type v_prediction"
        assert lines == [f"{tmp_path / 'out'}/{said}"]


def test_no_scheduler_is_assumed(command: Command, tmp_path: Path) -> None:
    """A bare network is refused in a line that says how to go on; and so it goes on, with a file or its folders."""
    folder = save(tmp_path / "pipeline", **SAMPLED)
    network = bare(folder, tmp_path)
    code, out, err = command("import", network, "--out", "none")
    assert code == 2 and not out and "--scheduler" in err and len(err.splitlines()) == 1 and len(err) < 500
    example = json.loads(err[err.index("{") : err.rindex("}") + 1])
    theirs = diffusers.DDPMScheduler.from_config(example)
    assert torch.equal(theirs.betas, diffusers.DDPMScheduler().betas) and theirs.config.prediction_type == "epsilon"
    for k, place in enumerate((folder, folder / "scheduler", folder / "scheduler" / "scheduler_config.json")):
        code, out, err = command("import", network, "--scheduler", place, "--out", f"a model {k}")
        assert (code, err) == (0, "") and f"undiffuse sample 'a model {k}'" in out and "v_prediction" in out
        assert load(f"a model {k}").config.process.schedule == "cosine"
    code, _, err = command("import", network, "--scheduler", "pipeline/unet", "--out", "none")
    assert code == 2 and "pipeline/unet" in err and not Path("none").exists()


def test_schedulers_that_disagree(tmp_path: Path) -> None:
    """Two that say the same of training are one; two that do not are refused, until one is chosen."""
    folder = checkpoint(tmp_path / "out", "unet")
    diffusers.HeunDiscreteScheduler.from_pretrained(folder.parent / "scheduler").save_pretrained(folder / "scheduler")
    assert "100 steps, squaredcos_cap_v2" in lines_of(folder / "unet", tmp_path / "same")[0]
    diffusers.DDPMScheduler(beta_end=0.01).save_pretrained(folder / "scheduler")
    with pytest.raises(UsageError, match=r"disagree.*--scheduler") as caught:
        import_diffusers(folder / "unet", tmp_path / "no")
    assert str(folder / "scheduler") in str(caught.value) and str(folder.parent / "scheduler") in str(caught.value)
    lines_of(folder / "unet", tmp_path / "said", folder / "scheduler")
    assert load(tmp_path / "said").denoiser.process.schedule.betas[-1] == pytest.approx(0.01)
    pipeline = save(tmp_path / "models" / "one")  # a whole pipeline is not asked about what lies around it
    diffusers.DDPMScheduler(beta_end=0.01).save_pretrained(tmp_path / "models" / "scheduler")
    assert load(import_diffusers(pipeline, tmp_path / "own")).denoiser.process.schedule.betas[-1] == 0.02


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    """Of a checkpoint, as EMAModel of diffusers writes them; and the last ones where their folder is given."""
    folder = checkpoint(tmp_path / "out", "unet")
    average = make_unet()
    ema = diffusers.training_utils.EMAModel(
        average.parameters(), use_ema_warmup=True, model_cls=diffusers.UNet2DModel, model_config=average.config
    )
    for parameter in average.parameters():
        parameter.data += 0.01
    for _ in range(5):
        ema.step(average.parameters())
    ema.save_pretrained(folder / "unet_ema")
    lines = lines_of(folder, tmp_path / "average")
    assert "unet_ema: the averaged weights (EMA)" in lines[0] and str(folder / "unet") in lines[0]
    got = load(tmp_path / "average").network.state_dict()
    wanted = load_file(folder / "unet_ema" / WEIGHTS)
    last = load_file(folder / "unet" / WEIGHTS)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert not any(torch.equal(wanted[name], tensor) for name, tensor in last.items())
    assert len(lines_of(folder / "unet", tmp_path / "last")) == 1
    got = load(tmp_path / "last").network.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in last.items())
    shutil.copytree(folder / "unet_ema", folder.parent / "unet_ema")  # beside the network that model_index.json names
    lines = lines_of(folder.parent, tmp_path / "pipeline")
    assert "model_index.json" in lines[0] and "unet_ema" in lines[0]
    got = load(tmp_path / "pipeline").network.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in last.items())
    shutil.rmtree(folder.parent / "unet")
    shutil.rmtree(folder.parent / "unet_ema")
    with pytest.raises(UsageError, match="checkpoint-500"):
        import_diffusers(folder.parent, tmp_path / "which")


@pytest.mark.parametrize("shards", [None, "10KB"])
@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_alone(variant: str, dtype: torch.dtype, shards: str | None, tmp_path: Path) -> None:
    """As save_pretrained writes it, whole or in shards: each number as it is there, in float32."""
    folder = save(tmp_path / "pipeline")
    (folder / "unet" / WEIGHTS).unlink()
    options = {"max_shard_size": shards} if shards else {}
    network = make_unet()
    copy.deepcopy(network).to(dtype).save_pretrained(folder / "unet", variant=variant, **options)
    assert (len(list(folder.glob("unet/*.safetensors"))) > 1) == bool(shards)
    lines = lines_of(folder, tmp_path / "half")
    assert variant in lines[0] and str(dtype).removeprefix("torch.") in lines[0] and "float32" in lines[0]
    weights = load_file(tmp_path / "half" / "weights.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(weights[name], tensor.to(dtype).float())
    whole = {} if shards else {"max_shard_size": "10KB"}
    network.save_pretrained(folder / "unet", **whole)  # beside it, the full one
    assert len(lines_of(folder, tmp_path / "full")) == 1
    weights = load_file(tmp_path / "full" / "weights.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_several_variants_are_not_chosen_from(tmp_path: Path) -> None:
    """Two halves without a whole are refused by name."""
    folder = save(tmp_path / "pipeline")
    shutil.copy(folder / "unet" / WEIGHTS, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(UsageError, match="fp16, non_ema"):
        import_diffusers(folder, tmp_path / "out")


READ = [
    *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("KDPM2Discrete", "KDPM2AncestralDiscrete", "LMSDiscrete", "RePaint", "SASolver", "UnCLIP", "UniPCMultistep"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 250},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.02},
    "exp": {"beta_schedule": "exp"},
    "no signal": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", READ)
def test_noise_is_that_of_every_scheduler(name: str, tmp_path: Path) -> None:
    """alpha_bar is its alphas_cumprod, with the options it has and, where its file is silent, with its own defaults."""
    kind = getattr(diffusers, f"{name}Scheduler")
    folder, compared = save(tmp_path / "pipeline"), 0
    file = folder / "scheduler" / "scheduler_config.json"
    for options in OPTIONS.values():
        try:
            theirs = kind(**options)
        except (NotImplementedError, TypeError, ValueError):  # no such schedule of this class
            continue
        theirs.save_pretrained(folder / "scheduler")
        for content in (json.loads(file.read_text()), {"_class_name": f"{name}Scheduler", **options}):
            file.write_text(json.dumps(content))
            model = load(import_diffusers(folder, tmp_path / f"out{compared}"))
            alpha_bar = model.denoiser.process.schedule.alpha_bar[1:]
            assert (alpha_bar - theirs.alphas_cumprod.double()).abs().max() < 1e-6, options
            assert model.config.denoiser.target == ("v" if "prediction_type" in options else "eps")
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ("EDMEulerScheduler", r"ln\(sigma\) / 4"),
        ("EDMDPMSolverMultistepScheduler", r"ln\(sigma\) / 4"),
        ("FlowMatchEulerDiscreteScheduler", "not a table of betas"),
        ("FlowMatchHeunDiscreteScheduler", "not a table of betas"),
        ("LCMScheduler", "consistency model"),
        ("TCDScheduler", "consistency model"),
        ("CMStochasticIterativeScheduler", "consistency model"),
        ("ScoreSdeVeScheduler", "without a table"),
        ("IPNDMScheduler", "times from 0 to 1"),
        ("CogVideoXDDIMScheduler", "signal-to-noise"),
        ("DDPMWuerstchenScheduler", "such as DDPM"),
    ],
)
def test_other_noise_is_refused_with_the_reason(scheduler: str, reason: str, tmp_path: Path) -> None:
    """What is no table of betas under a network that counts its steps cannot be read, and the refusal says why."""
    folder = save(tmp_path / "pipeline")
    getattr(diffusers, scheduler)().save_pretrained(folder / "scheduler")
    with pytest.raises(UsageError, match=rf"{scheduler}, which is not read: .*{reason}"):
        import_diffusers(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("DPMSolverMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas"),
        ("UniPCMultistep", {"prediction_type": "flow_prediction"}, "prediction_type = flow_prediction"),
        ("EulerDiscrete", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, "timestep_type"),
    ],
)
def test_options_of_another_noise(name: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The same of classes that are read, where an option makes them something else."""
    folder = save(tmp_path / "pipeline")
    getattr(diffusers, f"{name}Scheduler")(**options).save_pretrained(folder / "scheduler")
    with pytest.raises(UsageError, match=reason):
        import_diffusers(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({}, None),
        ({"clip_sample": False}, "--threshold none"),
        ({"thresholding": True, "sample_max_value": 2.0}, "--threshold dynamic"),
        ({"clip_sample_range": 2.0}, "clips at 2.0"),
    ],
)
def test_what_a_scheduler_says_of_sampling_is_said(options: dict[str, Any], hint: str | None, tmp_path: Path) -> None:
    """It is no part of a model; how to sample so is in the output."""
    lines = lines_of(save(tmp_path / "pipeline", **options), tmp_path / "out")
    assert len(lines) == (1 if hint is None else 2) and (hint is None or hint in lines[1])


def shards(folder: Path, places: dict[str, str]) -> None:
    """Splits a network's weights in two and says in the index that the second is at `places`."""
    weights = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / "unet" / file)
    index = {"weight_map": {name: places.get(file, file) for file, part in parts.items() for name in part}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("../b.safetensors", "not a .safetensors file beside it"),
        ("/etc/passwd", "not a .safetensors file beside it"),
        ("b.bin", "not a .safetensors file beside it"),
        ("c.safetensors", "is missing"),
        ("a.safetensors", "weight is missing (and 71 more)"),
    ],
)
def test_shards_lie_beside_their_index(place: str, reason: str, tmp_path: Path) -> None:
    """One elsewhere is refused though its name is also here, and so are a missing one and one that lacks a weight."""
    folder = save(tmp_path / "pipeline")
    shards(folder, {"b.safetensors": place})
    shutil.copy(folder / "unet" / "b.safetensors", folder / "b.safetensors")
    with pytest.raises(UndiffuseError) as caught:
        import_diffusers(folder, tmp_path / "out")
    assert reason in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor(float("nan")), "conv_out.bias has numbers that are not finite"),
        (torch.tensor(1e300, dtype=torch.float64), "not finite"),
        (torch.tensor(1, dtype=torch.int8), "quantised"),
    ],
)
def test_weights_are_numbers(value: torch.Tensor, reason: str, tmp_path: Path) -> None:
    """NaN, what float32 has no room for, and integers."""
    folder = save(tmp_path / "pipeline")
    weights = load_file(folder / "unet" / WEIGHTS)
    weights["conv_out.bias"] = value.reshape(1)
    save_file(weights, folder / "unet" / WEIGHTS)
    with pytest.raises(UndiffuseError, match=reason):
        import_diffusers(folder, tmp_path / "out")


def test_messages_keep_their_names(tmp_path: Path) -> None:
    """What pydantic says begins small and is else as it is."""
    folder = save(tmp_path / "pipeline")
    file = folder / "unet" / "config.json"
    content = json.loads(file.read_text())
    for key, value, message in (
        ("mid_block_type", "UNetMidBlock2DCrossAttn", "input should be 'UNetMidBlock2D' or None"),
        ("act_fn", "SiLU" * 1000, "input should be 'silu'"),
    ):
        file.write_text(json.dumps({**content, key: value}))
        with pytest.raises(UsageError) as caught:
            import_diffusers(folder, tmp_path / "out")
        assert message.split(" or")[0] in str(caught.value) and len(str(caught.value)) < 300


def test_an_imported_model_knows_no_data(command: Command, data: str, tmp_path: Path) -> None:
    """Its folder's name is no data set's, even where there is one of that name; and with --data it is measured."""
    folder = import_diffusers(save(tmp_path / "digits", make_unet(sample_size=16)), tmp_path / "own")
    model = load(folder)
    assert model.config.data.source == "digits" and model.learnt is None and model.has_learnt("") is None
    code, out, err = command("evaluate", folder)
    assert code == 2 and not out and "was imported without data" in err and "--data" in err
    for measure in (
        lambda: compare([str(folder), f"{folder}@ddim:5"]),
        lambda: density(model),
        lambda: ode_density(model),
    ):
        with pytest.raises(UsageError, match=r"was imported without data: .*--data"):
            measure()
    assert _data(model) is None
    measured = density(model, data, n=4, draws=1)
    assert "was imported, and its training data is not known" in sentence(measured)
    with pytest.raises(UsageError, match="holds no run"):
        train({}, folder, resume=True)


ODD = (None, True, -1, 0, 1, 10**9, 10**40, 0.5, -1e308, "", "x" * 10_000, [], [10**9] * 3, {"a": 1}, [1] * 9999)
ENOUGH = 2 << 30


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more address space than there is in use, and a bit: what asks for more gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ENOUGH, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
def test_mutated_folders_are_imported_or_refused(tmp_path: Path) -> None:
    """Keys dropped, odd values, other bytes: a model, or one short error; nothing half-written or enormous."""
    random_, whole = random.Random(14), save(tmp_path / "whole")
    files = [whole / "unet" / "config.json", whole / "scheduler" / "scheduler_config.json", whole / "model_index.json"]
    contents = [json.loads(file.read_text()) for file in files]
    header = int.from_bytes((whole / "unet" / WEIGHTS).read_bytes()[:8], "little") + 8
    outcomes: list[bool] = []
    messages: list[str] = []
    for k in range(160):
        folder = Path(shutil.copytree(whole, tmp_path / str(k)))
        which = k % 4
        if which < 3:
            file, content = files[which], dict(contents[which])
            for key in random_.sample(sorted(content), random_.choice((1, 1, 1, 2, 3))):
                if random_.random() < 0.2:
                    del content[key]
                else:
                    content[key] = random_.choice(ODD)
            (folder / file.relative_to(whole)).write_text(json.dumps(content))
        else:
            path = folder / "unet" / WEIGHTS
            damaged = bytearray(path.read_bytes())
            for _ in range(random_.choice((1, 1, 3, 20))):
                damaged[random_.randrange(header)] = random_.randrange(256)
            path.write_bytes(damaged[: random_.choice((len(damaged), len(damaged), header, 7))])
        try:
            load(import_diffusers(folder, tmp_path / "out" / str(k)))
            outcomes.append(True)
        except UndiffuseError as error:
            outcomes.append(False)
            messages.append(str(error))
        left = [path.name for path in (tmp_path / "out").iterdir()] if (tmp_path / "out").exists() else []
        assert sorted(left) == sorted(str(n) for n, done in enumerate(outcomes) if done)
        shutil.rmtree(folder)
    assert max(map(len, messages)) < 500 and not any("\n" in message for message in messages)
    assert 20 < sum(outcomes) < 110

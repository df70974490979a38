"""The lists of names: all stand for something, everything there is has a name, and others can be added from outside."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from undiffuse import process, registry, sampling
from undiffuse.config import keys, make_config
from undiffuse.errors import UsageError
from undiffuse.objectives import times, weighting
from undiffuse.registry import Registry, Schedule

LISTS = {name: one for name, one in vars(registry).items() if isinstance(one, Registry)}
PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.mark.parametrize("name", LISTS)
def test_every_name_stands_for_something(name: str) -> None:
    for key in LISTS[name]:
        thing = LISTS[name].find(key)
        assert thing.is_file() if isinstance(thing, Path) else callable(getattr(thing, "step", thing)), key
        if isinstance(thing, Schedule):
            assert callable(registry.located(thing.place))


def test_everything_there_is_has_a_name() -> None:
    """Schedules, step rules, grids, weightings, distributions and draws of times that are public: all are listed."""

    def public(module: Any, *but: str) -> set[str]:
        own = {name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
        return {name for name in own if name.islower() and name[0] != "_"} - {*but}

    places = {sampler.place.rpartition(":")[2] for sampler in registry.SAMPLERS.values()}
    assert places == {"ancestral", "cfg_plus_plus", "ddim", "heun", "dpm_solver_pp", "unipc"} <= {*sampling.__all__}
    named = {one.place.rpartition(":")[2] for one in registry.SCHEDULES.values()}
    kinds = {
        name
        for name in process.__all__
        if isinstance(thing := getattr(process, name), type) and issubclass(thing, process.Schedule)
    } - {"Schedule"}
    assert kinds | public(process.table, "zero_terminal_snr") == named
    assert {f.__name__ for f in registry.GRIDS.values()} == public(sampling.grids, "make_grid", "at_log_snrs")
    assert {f.__name__ for f in registry.WEIGHTINGS.values()} == public(weighting)
    assert {f.__name__ for f in (*registry.TIME_SAMPLERS.values(), *registry.DRAWS.values())} == public(times)


def test_help_and_settings_have_every_name(command: Command) -> None:
    """`--help` of sample, and the list of settings."""
    said = re.sub(r"\s+", "", command("sample", "--help")[1])  # lines break at the dash of a name
    for name in (*registry.SAMPLERS, *registry.GRIDS, *registry.THRESHOLDS, *registry.ENGINES):
        assert name in said
    said = re.sub(r"\s+", "", command("train", "--help")[1])
    assert all(name in said for name in registry.PRESETS)
    said = re.sub(r"\s+", "", command("export", "--help")[1])
    assert all(name in said for name in registry.FORMATS)
    kinds = {key: kind for key, kind, *_ in keys()}
    for key, names in {"process.schedule": registry.SCHEDULES, "network.kind": registry.NETWORKS}.items():
        assert set(re.split(", | or ", kinds[key])) == set(names)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"process.schedule": "cosin"},
            r"process\.schedule = 'cosin': no schedule 'cosin': did you mean cosine\? Else .*ve",
        ),
        ({"network.kind": "qqq"}, r"network\.kind = 'qqq': no network 'qqq': choose from unet, unet2d, mlp"),
        ({"denoiser.target": 3}, r"denoiser\.target = 3"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_there_are(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_config(setting)


def test_a_name_is_added_once_and_is_one() -> None:
    names: Registry[str] = Registry("thing", {"one": "os:getcwd"})
    names.add("two", "os:getpid")
    assert list(names) == ["one", "two"] and callable(names.find("two"))
    with pytest.raises(ValueError, match="there is a thing 'one' already"):
        names.add("one", "os:getpid")
    for wrong in ("Two", "a b", "", "../x", "x" * 41):
        with pytest.raises(ValueError, match="is not a valid name"):
            names.add(wrong, "os:getpid")


def _zero(denoiser: Any, x0: Any, condition: Any, u: Any, draw: Any, weighting: Any) -> Any:
    return weighting(u)


def _scaled(log_snr: Any, gamma: float, sigma_data: float) -> Any:
    return gamma * sigma_data + 0 * log_snr


def test_a_loss_and_a_weighting_from_outside_are_those_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the settings that they have arguments for, and nothing of the package stands in for them."""
    import torch

    from undiffuse.build import make_objective

    for name, names, place in (("zero", registry.LOSSES, "_zero"), ("scaled", registry.WEIGHTINGS, "_scaled")):
        monkeypatch.setitem(names._entries, name, f"{__name__}:{place}")
    settings = {"objective.loss": "zero", "objective.weighting": "scaled", "objective.gamma": 3.0}
    loss: Any = make_objective(make_config({**settings, "denoiser.sigma_data": 0.5}))
    assert loss(None, None, None, torch.zeros(2), None).tolist() == [1.5, 1.5]


def _eps_again(level: Any, sigma_data: float) -> Any:
    from undiffuse.targets import eps

    return eps(level, sigma_data)


def test_a_target_of_the_noise_is_read_as_eps_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where less signal is left than a network is told of, x_0 takes care of what was told, whatever the name."""
    import torch

    from undiffuse.denoiser import Denoiser
    from undiffuse.process import GaussianProcess, cosine

    monkeypatch.setitem(registry.TARGETS._entries, "again", f"{__name__}:_eps_again")
    q = GaussianProcess(cosine(20))
    assert q.schedule.log_snr(0.95) < -5
    eps, again = (Denoiser(lambda x, *_: x, q, target, 0.5, least_log_snr=-4.0) for target in ("eps", "again"))
    x = torch.randn(2, 3, dtype=torch.float64)
    for t in (0.3, 0.95, torch.tensor([0.3, 0.95], dtype=torch.float64)):
        assert torch.equal(eps(x, t).x0, again(x, t).x0)
    assert eps(x, 0.95).x0.abs().max() < 0.1 * (x / q.noise_level(0.95).alpha).abs().max()


def test_names_added_after_the_command_was_imported_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports are sorted by name: one's own file may come after the package."""
    from undiffuse.cli import complete, early

    monkeypatch.setitem(registry.SAMPLERS._entries, "late", registry.SAMPLERS["ddim"])
    assert "late" in [*early.CHOICES["sampler"]()] and complete.samplers("la") == ["late"]


def _narrow(config: Any, inputs: int, outputs: int, takes: Any, dims: int) -> Any:
    import torch

    return torch.nn.Conv2d(inputs, outputs, **config.network.options)


def test_options_that_a_network_from_outside_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are an error of the person, with the name; those that it takes are given to it."""
    from undiffuse.build import default_network, make_network

    monkeypatch.setitem(registry.NETWORKS._entries, "narrow", f"{__name__}:_narrow")
    for options in ({"kernel_size": 3}, {"kernel_size": 3, "deep": True}):
        config = make_config({"network.kind": "narrow", "network.options": options})
        config = config.model_copy(update={"network": default_network(config.network, (8, 8))})
        if "deep" in options:
            with pytest.raises(UsageError, match=r"network: .*deep"):
                make_network(config, 1)
        else:
            assert {p.shape for p in make_network(config, 1).parameters()} == {(1, 1, 3, 3), (1,)}


def test_the_page_on_extending_runs(tmp_path: Path) -> None:
    """As somebody else's package: its files and then its scripts, in an interpreter of their own; then the command."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    script = "import torch\ntorch.set_num_threads(1)\n"
    for block in blocks:
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
        else:
            script += block
    (tmp_path / "all.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, "all.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imports = next(line for line in script.splitlines() if line.startswith("import even_schedule"))
    (tmp_path / "mine.py").write_text(f"{imports}\nfrom undiffuse.cli.app import main\nmain()\n", encoding="utf-8")
    line = ["sample", "runs/extended", "-n", "2", "--sampler", "midpoint", "--steps", "3", "--threshold", "soft"]
    done = subprocess.run([sys.executable, "mine.py", *line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "extended-samples.png").exists(), done.stderr
    plain = [sys.executable, "-m", "undiffuse", "sample", "runs/extended"]  # where nobody has added the names
    done = subprocess.run(plain, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "no schedule 'even'" in done.stderr and "Traceback" not in done.stderr


def test_the_midpoint_of_the_page_is_of_second_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is the target's way back right: x_0 from a x_0 + b eps, at any noise level."""
    import torch
    from references import as64, gaussian_denoiser, walk

    from undiffuse.process import VP, GaussianProcess

    blocks = re.findall(r"```python\n(# (\w+)\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    spaces: dict[str, dict[str, Any]] = {name: {} for _, name in blocks}
    for block, name in blocks:
        exec(re.sub(r"^[A-Z]+\.add\(.*$", "", block, flags=re.M), spaces[name])
    q = GaussianProcess(VP())
    denoise = gaussian_denoiser(q, as64(0.3), as64(0.5))
    errors = []
    for steps in (40, 80):
        log_snr = torch.linspace(-6, 6, steps + 1, dtype=torch.float64)
        grid = q.schedule.time(log_snr)
        step = spaces["midpoint_sampler"]["midpoint"]
        start = torch.ones(1, 1, dtype=torch.float64)
        *_, last = walk(denoise, q, grid, step, torch.empty, start)
        fine = q.schedule.time(torch.linspace(-6, 6, 4001, dtype=torch.float64))
        *_, exact = walk(
            denoise, q, fine, sampling.heun, lambda k: torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.float64)
        )
        errors.append((last.x - exact.x).abs().item())
    assert 3.5 < errors[0] / errors[1] < 4.5
    level = q.noise_level(0.4)
    c = spaces["difference_target"]["difference"](level, 0.5)
    x0, eps = 0.7, -1.2
    x_t = level.alpha * x0 + level.sigma * eps
    assert float(c.c_skip * x_t + c.c_out * (c.a * x0 + c.b * eps)) == pytest.approx(x0, rel=1e-12)

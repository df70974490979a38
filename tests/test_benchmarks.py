"""The pure parts of benchmarks/speed.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    """benchmarks/speed.py, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("TQDM_DISABLE", "1")  # it sets that itself; this puts it back
        spec = importlib.util.spec_from_file_location("benchmarks_speed", BENCHMARKS / "speed.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_nearest_width_is_nearest_as_a_ratio(speed: ModuleType) -> None:
    def cost(width: int) -> float:
        return width**2

    assert speed.nearest_width(64.0**2, cost) == 64
    assert speed.nearest_width(59.0**2, cost) == 56  # sqrt(56 * 64) is 59.9
    assert speed.nearest_width(60.0**2, cost) == 64
    assert speed.nearest_width(1.0, cost) == 8


def test_megaflops_are_those_of_the_formula(speed: ModuleType) -> None:
    convolution = nn.Conv2d(3, 16, 3, padding=1)
    assert speed.megaflops(convolution, (3, 8, 8)) == pytest.approx(2 * 3 * 16 * 9 * 64 / 1e6, rel=1e-12)


def test_megaflops_count_attention(speed: ModuleType) -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    tokens, width, heads = 49, 64, 2
    assert speed.megaflops(Attention(), (heads, tokens, width)) == pytest.approx(
        2 * 2 * heads * tokens**2 * width / 1e6, rel=1e-12
    )


def test_widening_reaches_a_peer(speed: ModuleType) -> None:
    """Within the granularity of 8 channels, a few percent where the peers are."""
    cost = {}

    def megaflops(width: int) -> float:
        return cost.setdefault(width, speed.our_megaflops(speed.our_config(width=width)))

    for target in (583.0, 642.0):
        assert megaflops(speed.nearest_width(target, megaflops)) == pytest.approx(target, rel=0.08)


def test_excess_is_paired(speed: ModuleType) -> None:
    figure = speed.excess([1.1, 2.2, 4.8], [1.0, 2.0, 4.0], batch=1)
    assert (figure["median"], figure["min"], figure["max"]) == (10.0, 10.0, 20.0)
    assert figure["repeats"] == 3 and figure["batch"] == 1


def test_alternate_reverses_every_other_round(speed: ModuleType) -> None:
    calls: list[str] = []

    def run(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times = speed.alternate({name: lambda name=name: run(name) for name in "ab"}, 2)
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert times == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution and matrix multiplication"),
        ("aten::convolution_backward", "convolution and matrix multiplication"),
        ("aten::addmm", "convolution and matrix multiplication"),
        ("aten::mm", "convolution and matrix multiplication"),
        ("aten::bmm", "attention"),
        ("aten::native_group_norm_backward", "normalisation"),
        ("aten::silu_backward", "SiLU"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_fused_adamw_", "optimiser, clipping, EMA"),
        ("aten::_foreach_norm", "optimiser, clipping, EMA"),
        ("aten::linalg_vector_norm", "optimiser, clipping, EMA"),
        ("aten::cat", "other operators"),
    ],
)
def test_kinds_of_operators(speed: ModuleType, operator: str, kind: str) -> None:
    assert speed.kind_of(operator) == kind

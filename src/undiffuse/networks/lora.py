"""Low-rank adapters (Hu et al. 2022, LoRA, section 4.1): W' = W + (alpha / rank) B A, with W frozen and B = 0 at first.

The network computes W' and then what it always computes, so an adapted network and one with the weights merged give the
same bits. A convolution's weight is adapted as the matrix (outputs, inputs x filter).
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

INFIX = ".parametrizations.weight."  # torch's, between the name of a layer and what its weight is computed from
FACTORS = (".lora_A", ".lora_B")  # after the name of a layer, in files


def low_rank_sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A for A (rank, inputs) and B (outputs, rank), in the shape of W."""
    return weight + (scale * (b @ a)).view_as(weight)


class LowRank(nn.Module):
    """The parametrization of a weight (outputs, ...) by an adapter."""

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)  # as torch initialises the layers themselves

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as precise as the merged weight
            return low_rank_sum(weight, self.A, self.B, self.scale)


def add_adapters(network: nn.Module, rank: int, scale: float = 1.0, full: Collection[str] = ()) -> None:
    """Adapts all convolutions and linear layers of a network, in place, and freezes its weights.

    Args:
        network: at first it computes what it did, bit for bit.
        rank: of B A.
        scale: alpha / rank, the factor of B A.
        full: names of parameters that are trained themselves. Their layers get no adapter.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and f"{name}.weight" not in full:
            register_parametrization(module, "weight", LowRank(module.weight.detach(), rank, scale))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in full or (INFIX in name and not name.endswith(".original")))


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The plain weights of an adapted network, by their plain names, from its parameters; others' as they are."""
    plain = {}
    for name, tensor in state.items():
        layer, adapted, part = name.partition(INFIX)
        if not adapted:
            plain[name] = tensor
        elif part == "original":
            a, b = (state[f"{layer}{INFIX}0.{factor}"] for factor in "AB")
            plain[f"{layer}.weight"] = low_rank_sum(tensor, a, b, scale)
    return plain


def factors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B of each adapter among the parameters of a network, as "layer.lora_A" and "layer.lora_B"."""
    return {
        f"{name.partition(INFIX)[0]}.lora_{name[-1]}": tensor
        for name, tensor in state.items()
        if INFIX in name and not name.endswith(".original")
    }

"""Facts about the machine that a process runs on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn


def shares_a_cpu() -> bool:
    """Whether this is one of several processes (torchrun) on a machine without a GPU.

    Accelerate then needs cpu=True, or each process believes it is the only one.
    """
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


def has_bf16() -> bool:
    """Whether the hardware computes bfloat16: the GPU or, without one, the CPU (emulation does not pay)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the CPU computes bfloat16."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """`network` moved to `device`, in the memory format that suits convolutions there: channels last on a GPU."""
    network.to(device)
    if torch.device(device).type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` in the memory format of `parameter`, which fused optimisers rely on; a count of steps as it is."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; copied to a GPU asynchronously, from pinned memory."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def conditions(*packages: str) -> dict[str, Any]:
    """What measurements made here depend on, as JSON: the threads, the kind of machine, and the versions of undiffuse,
    torch and `packages` (None if not installed)."""
    versions: dict[str, str | None] = {"undiffuse": version("undiffuse"), "torch": torch.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"threads": torch.get_num_threads(), "machine": platform.machine(), "versions": versions}

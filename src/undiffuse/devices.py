"""What there is to know about where a process runs."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn


def shares_a_cpu() -> bool:
    """Whether this is one of several processes (torchrun) on a machine without a GPU.

    Accelerate then has to be given cpu=True, or each process takes itself for the only one.
    """
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


def has_bf16() -> bool:
    """Whether bfloat16 is computed by the hardware: a GPU that has it or, without one, a CPU that has (others emulate
    it, at a loss).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the CPU computes bfloat16."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """`network` moved to `device`, its weights laid out as convolutions like them there: channels last on a GPU."""
    network.to(device)
    if torch.device(device).type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; to a GPU from pinned memory, without waiting for it to arrive."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def conditions(*packages: str) -> dict[str, Any]:
    """What figures measured here depend on, as JSON: the threads, the kind of machine, and the versions of undiffuse,
    torch and `packages`, None of those that are not installed."""
    versions: dict[str, str | None] = {"undiffuse": version("undiffuse"), "torch": torch.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"threads": torch.get_num_threads(), "machine": platform.machine(), "versions": versions}

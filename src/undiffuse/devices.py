"""What Accelerate must be told about where a process runs."""

import os

import torch


def shares_a_cpu() -> bool:
    """Whether this is one of several processes (torchrun) on a machine without a GPU.

    Accelerate then has to be given cpu=True, or each process takes itself for the only one.
    """
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()

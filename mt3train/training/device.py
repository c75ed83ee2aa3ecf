"""What this process computes on, and in which precision."""

import os
from contextlib import AbstractContextManager

import torch

from mt3data.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}


def own_device() -> torch.device:
    """This process's GPU, or the CPU where there is none.

    Raises:
        UserError: more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, n_devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if n_processes > n_devices:  # so on all of them: the first one is who tells it
        raise UserError(
            f"{n_processes} processes on this machine find {n_devices} GPUs; start one process per"
            f" GPU: torchrun --nproc_per_node={n_devices}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def choose_precision(wanted: str, device: torch.device) -> str:
    """The wanted precision, or what "auto" stands for on this device.

    On a CPU without bf16 instructions bf16 is many times slower.

    Raises:
        UserError: fp16 on a CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision='fp16' needs a GPU; use auto, bf16 or float32 on a CPU")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Products in bf16 or fp16 inside the context; nothing for the other precisions."""
    enabled = precision in ("bf16", "fp16")
    return torch.autocast(device.type, DTYPES.get(precision), enabled=enabled)

"""Chooses a device and a precision by words, compiles layers, and keeps freed memory."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

from mt3data.errors import UserError
from mt3data.terminal import one_line

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bf16", "fp16")  # of matrix products; see choose_precision
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(wanted: str = "auto") -> torch.device:
    """Returns the device that a word names.

    Args:
        wanted: one of DEVICES, or a device of torch such as "cuda:1". "auto" is the GPU if CUDA finds
            one, else the CPU. It is never "mps", on which nothing of this package was ever run.
    Raises:
        UserError: there is no such device on this computer.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device {wanted}: expected one of {', '.join(DEVICES)}") from None
    n_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= n_devices:
        raise UserError(
            f"device {wanted}: PyTorch finds none on this computer; take cpu, or install the build of "
            "PyTorch for it (pytorch.org)"
        )
    return device


def choose_precision(wanted: str, device: torch.device, training: bool = False) -> str:
    """Returns the wanted precision, or the one that "auto" selects on a device.

    "auto" is bf16 on a GPU that multiplies it natively. On other GPUs it is fp16 for training and
    float32 for decoding. On a CPU it is bf16 for training where there are bf16 instructions, because
    without them it is many times slower, and float32 for decoding (benchmarks/README.md). On MPS it is
    float32.

    Raises:
        UserError: fp16 on a CPU.
    """
    import torch

    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision='fp16' needs a GPU; use auto, bf16 or float32 on a CPU")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp16" if training else "float32"
    has_bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if training and has_bf16 else "float32"


def compile_layers(layers: list[torch.nn.Module], device: torch.device) -> list[str]:
    """Compiles layers in place for training. One graph serves all layers of a kind and all lengths.

    The whole model is one graph, whose compilation did not end within five minutes on a CPU.

    Returns:
        A message if not even a sine can be compiled, such as without a C++ compiler, which a CPU
        needs. Then no layer is.
    """
    import torch._dynamo

    # DDP would split a compiled model into its buckets of gradients. A layer is smaller than that.
    torch._dynamo.config.optimize_ddp = False
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:  # torch, the compiler and the headers of Python each have their own
        reason = str(error).partition("\n\n")[0]  # torch adds how to debug it
        return [f"compile=true: nothing is compiled ({one_line(reason)})"]
    for layer in layers:
        layer.compile(dynamic=True)  # names stay as they are
    return []


def keep_freed_memory() -> None:
    """Lets this process keep what it frees. Then new tensors rarely cause page faults.

    It changes glibc's thresholds for whole processes, so only commands call it. Elsewhere it does
    nothing. A step on a CPU has less than half the page faults (benchmarks/README.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        # Before version 2.35, glibc refuses more than 32 MiB.
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)

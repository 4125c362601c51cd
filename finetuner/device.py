"""What the hardware can do: devices, the arithmetic that is fast on them, several processes."""

from __future__ import annotations

import ctypes
import sys

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetuner.config import Device, Precision
from finetuner.errors import ConfigError

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def resolve_device(device: Device) -> tuple[torch.device, str | None]:
    """Return the device to use and, where it is not the one asked for, a warning to show.

    :param device: The device asked for.
    """
    if device is Device.CUDA and not torch.cuda.is_available():
        return torch.device(
            "cpu"
        ), "device='cuda' was asked for, but there is no GPU here: using the CPU"
    return torch.device(device.value), None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere it is far slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to use: ``auto`` is bf16 where the hardware has it, else fp32.

    :param precision: What was asked for.
    :param device: Where the model is.
    :raises ConfigError: When bf16 or fp16 is asked for by name where the hardware lacks it.
    """
    if precision is Precision.AUTO:
        return Precision.BF16 if has_fast_bf16(device) else Precision.FP32
    if precision is Precision.BF16 and not has_fast_bf16(device):
        raise ConfigError(
            f"precision='bf16' is not in this {device.type}'s hardware; use auto or fp32"
        )
    if precision is Precision.FP16 and device.type != "cuda":
        raise ConfigError("precision='fp16' needs a GPU; use auto, bf16 or fp32")
    return precision


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step of a training to take.

    glibc gives a block above 32 MB back at once, and gets it anew from the kernel, page by page. The
    gradient of a vocabulary of 30,000 is 47 MB and made anew in each step: a tenth of the processor time
    of fine-tuning a small transformer went into that. Elsewhere than on Linux with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def build_accelerator(precision: Precision, device: torch.device) -> Accelerator:
    """Return what knows device, arithmetic and the other processes of a ``torchrun``.

    :param precision: As :func:`resolve_precision` takes it.
    :param device: ``cpu`` or ``cuda``; with several processes each has a GPU of its own.
    :raises ConfigError: As :func:`resolve_precision`.
    """
    resolved = resolve_precision(precision, device)
    if resolved is Precision.FP32:
        # On AMD's CPUs this leads from MKL to oneDNN: 1.8 times as fast, errors as before.
        torch.set_float32_matmul_precision("medium")
    # Accelerate keeps one state a process and refuses a second precision; the process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if resolved is Precision.FP32 else resolved.value,
    )

"""What the hardware can do: devices and the arithmetic that is fast on them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from finetuner.config import Device, Precision
from finetuner.errors import ConfigError


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


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a forward pass has that precision.

    :param precision: ``auto`` is bf16 where the hardware has it, else fp32.
    :param device: Where the model is.
    :raises ConfigError: When bf16 is asked for by name where the hardware lacks it.
    """
    fast = has_fast_bf16(device)
    if precision is Precision.BF16 and not fast:
        raise ConfigError(
            f"precision='bf16' is not in this {device.type}'s hardware; use auto or fp32"
        )
    if precision is Precision.FP32 or not fast:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)

from contextlib import nullcontext

import pytest
import torch

from finetuner.config import Device, Precision
from finetuner.device import autocast, has_fast_bf16, resolve_device
from finetuner.errors import ConfigError

_CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "has_gpu", "expected"),
    [
        (Device.CPU, False, ("cpu", None)),
        (Device.CPU, True, ("cpu", None)),
        (Device.CUDA, True, ("cuda", None)),
        (
            Device.CUDA,
            False,
            ("cpu", "device='cuda' was asked for, but there is no GPU here: using the CPU"),
        ),
    ],
)
def test_resolve_device(monkeypatch, asked, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    device, warning = resolve_device(asked)
    assert (device.type, warning) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, False),
        ({"avx512_bf16": False, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
    ],
)
def test_bf16_of_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_fast_bf16(_CPU) is expected


def test_emulated_bf16_of_a_gpu_does_not_count(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert has_fast_bf16(torch.device("cuda")) is False


@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [
        (Precision.FP32, False, torch.float32),
        (Precision.FP32, True, torch.float32),
        (Precision.AUTO, False, torch.float32),
        (Precision.AUTO, True, torch.bfloat16),
        (Precision.BF16, True, torch.bfloat16),
    ],
)
def test_arithmetic_of_a_product(monkeypatch, precision, fast, expected):
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: fast)
    with autocast(precision, _CPU) as entered:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == expected
    if expected == torch.float32:
        assert entered is None
        assert isinstance(autocast(precision, _CPU), nullcontext)


def test_bf16_by_name_without_the_hardware(monkeypatch):
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="precision='bf16' is not in this cpu's hardware; use au"):
        autocast(Precision.BF16, _CPU)

import subprocess
import sys

import pytest
import torch

from finetuner.config import Device, Precision
from finetuner.device import build_accelerator, has_fast_bf16, resolve_device
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
    accelerator = build_accelerator(precision, _CPU)
    with accelerator.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == expected
    assert accelerator.device.type == "cpu"


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision.BF16, "precision='bf16' is not in this cpu's hardware; use auto"),
        (Precision.FP16, "precision='fp16' needs a GPU; use auto, bf16 or fp32"),
    ],
)
def test_arithmetic_by_name_without_the_hardware(monkeypatch, precision, message):
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: False)
    with pytest.raises(ConfigError, match=message):
        build_accelerator(precision, _CPU)


def test_fp32_products_take_the_fast_way_and_stay_exact():
    build_accelerator(Precision.FP32, _CPU)
    assert torch.get_float32_matmul_precision() == "medium"
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 384, generator=generator)
    exact = (left.double() @ right.double().T).float()
    # bf16 would be off by about 0.4 here.
    torch.testing.assert_close(left @ right.T, exact, atol=2e-4, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of Linux")
def test_freed_memory_is_taken_again_without_the_kernel():
    code = (
        "import resource, torch\n"
        "from finetuner.device import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "for turn in range(12):\n"
        "    block = torch.zeros(12_000_000)\n"
        "    del block\n"
        "    if turn == 1: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # A block is 11,719 pages; ten of them, each from the kernel, would be 117,190 faults.
    assert int(found.stdout) < 30_000

"""Checks of the machine: Python, packages, processor, GPU, memory, limits."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.filesize import decimal

import finetuner
from finetuner.checkup import Check, CheckState

Look = tuple[CheckState, str, str]
Version = Callable[[str], str]
_OK, _WARNING, _PROBLEM = CheckState.OK, CheckState.WARNING, CheckState.PROBLEM
DISTRIBUTION = "finetuner-flow"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# Of a checkout; a wheel has none.
_PINS = Path(finetuner.__file__).parents[1] / "requirements.txt"
_N_SHOWN = 5
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED_MEMORY = Path("/dev/shm")
_THREADS = "OMP_NUM_THREADS"
# all-MiniLM-L6-v2 trains in 2 GB, BERT base in 6.
_LITTLE_MEMORY_BYTES, _LEAST_MEMORY_BYTES = 6 * 10**9, 2 * 10**9
_LITTLE_SHARED_BYTES = 64 * 2**20
# Each follower of a log and each connection takes one or two.
_FEW_FILES, _LEAST_FILES = 4096, 256


def machine_checks() -> list[Check]:
    """Return the checks of this machine."""
    return [
        Check("Python", lambda: python(sys.version_info[:3])),
        Check("packages", lambda: packages(importlib.metadata.requires(DISTRIBUTION) or ())),
        Check("pins", lambda: pins(_read(_PINS))),
        Check("ONNX Runtime", onnx_runtime),
        Check("processor", lambda: processor(_CPU_INFO.read_text(encoding="utf-8"))),
        Check("cores", lambda: cores(len(os.sched_getaffinity(0)), _read(_CPU_LIMIT), os.environ)),
        Check("GPU", gpu),
        Check("memory", lambda: memory(_memory_bytes())),
        Check("shared memory", lambda: shared_memory(shutil.disk_usage(_SHARED_MEMORY).total)),
        Check("open files", lambda: open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # another kernel, another way of limits
        return ""


def python(version: Sequence[int]) -> Look:
    """Whether Python is the one that the package is for.

    :param version: Major, minor, micro.
    """
    shown = ".".join(map(str, version))
    if tuple(version[:2]) == (3, 11):
        return _OK, shown, ""
    return _PROBLEM, shown, "Python 3.11 is needed: jina 3.34 and docarray 0.21 go with it"


def packages(requirements: Sequence[str], version: Version = importlib.metadata.version) -> Look:
    """Whether what is installed is what the package asks for.

    :param requirements: As the package's own metadata state them.
    :param version: Of an installed distribution.
    """
    wrong, n_checked = [], 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        n_checked += 1
        try:
            found = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if not found[0].isdigit() or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needs {requirement.specifier or 'any'})")
    if wrong:
        advice = "pip install -c requirements.txt '.[cpu]' in the repository, or make install"
        return _PROBLEM, ", ".join(wrong), advice
    return _OK, f"{n_checked} packages are as asked for", ""


def pins(content: str, version: Version = importlib.metadata.version) -> Look:
    """Whether what is installed is what this version was tested with.

    :param content: Of ``requirements.txt``; empty where there is none.
    :param version: Of an installed distribution.
    """
    if not content:
        return _OK, "no requirements.txt beside the package", ""
    others, n_same = [], 0
    for line in content.splitlines():
        name, sign, pinned = line.partition("==")
        if not sign or line.startswith("#"):
            continue
        try:
            found = version(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra, such as mlflow-skinny
            continue
        # A build for one device, such as 2.13.0+cpu, is the same version.
        if found.partition("+")[0] == pinned.strip():
            n_same += 1
        else:
            others.append(f"{name} {found} ({pinned.strip()} pinned)")
    if others:
        more = f" and {len(others) - _N_SHOWN} more" if len(others) > _N_SHOWN else ""
        shown = ", ".join(others[:_N_SHOWN]) + more
        return _WARNING, shown, "pip install -c requirements.txt '.[cpu]' gives what was tested"
    return _OK, f"{n_same} packages are those of requirements.txt", ""


def onnx_runtime(version: Version = importlib.metadata.version) -> Look:
    """Whether there is one ONNX Runtime, and not two in each other's place.

    :param version: Of an installed distribution.
    """
    found = []
    for name in _RUNTIMES:
        try:
            found.append(f"{name} {version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    shown = ", ".join(found) or "none"
    if len(found) == 1:
        return _OK, shown, ""
    if found:
        return _PROBLEM, shown, f"pip uninstall -y {' '.join(_RUNTIMES)}, then install one again"
    return _PROBLEM, shown, "pip install 'finetuner-flow[cpu]', or [gpu]"


def processor(cpu_info: str) -> Look:
    """What the processor computes fast, and what ``precision='auto'`` makes of that.

    :param cpu_info: What the kernel says of it.
    """
    lines = dict(_fields(cpu_info))
    flags = set(lines.get("flags", "").split())
    # The kernel's names; any of a row will do.
    rows = {
        "AVX2": {"avx2"},
        "AVX-512": {"avx512f"},
        "VNNI": {"avx512_vnni", "avx_vnni"},
        "bf16": {"avx512_bf16", "amx_bf16"},
    }
    there = [name for name, names in rows.items() if names & flags]
    shown = f"{lines.get('model name', 'unknown')}: {', '.join(there) or 'none of AVX2 to bf16'}"
    if "AVX2" not in there:
        return _WARNING, shown, "without AVX2 all is several times slower; take another machine"
    precision = "bf16" if "bf16" in there else "fp32"
    eight = "" if "VNNI" in there else "; int8 graphs gain little without VNNI"
    return _OK, f"{shown}; precision auto is {precision}{eight}", ""


def _fields(cpu_info: str) -> list[tuple[str, str]]:
    first = cpu_info.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def cores(n_cores: int, limit: str, environment: Mapping[str, str]) -> Look:
    """Whether threads and cores go together.

    :param n_cores: That this process may run on.
    :param limit: Of its control group, as ``cpu.max`` has it; empty where there is none.
    :param environment: Its variables.
    """
    quota, _, period = limit.partition(" ")
    n_allowed = int(quota) / int(period) if quota.isdigit() and period.isdigit() else float(n_cores)
    threads = environment.get(_THREADS, "")
    shown = f"{n_cores}"
    if n_allowed < n_cores:
        shown += f", of which a limit leaves the time of {n_allowed:g}"
    if threads:
        shown += f"; {_THREADS}={threads}"
    if threads.isdigit() and int(threads) > n_cores:
        return _WARNING, shown, f"more threads than cores wait for each other: unset {_THREADS}"
    if n_allowed < n_cores:
        advice = f"threads are started for {n_cores} cores and then held up: give whole cores, as "
        return _WARNING, shown, f"{advice}by `docker run --cpuset-cpus` or taskset"
    if threads == "1" and n_cores > 1:
        return _WARNING, shown, f"training will use one core: unset {_THREADS}"
    return _OK, shown, ""


def _run(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()


def _torch_sees_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def gpu(
    run: Callable[..., str] = _run,
    which: Callable[[str], str | None] = shutil.which,
    sees: Callable[[], bool] = _torch_sees_gpu,
) -> Look:
    """Whether there is a GPU, and torch can use it.

    :param run: Gives what a command prints.
    :param which: Finds a command.
    :param sees: Whether torch can use a GPU; takes seconds, and is asked only where there is one.
    """
    if which("nvidia-smi") is None:
        return _OK, "none: all runs on the processor", ""
    found = run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    shown = "; ".join(found.splitlines()) or "none"
    if not found or sees():
        return _OK, shown, ""
    return (
        *(_WARNING, f"{shown}, which torch cannot use"),
        "install torch for CUDA (pip install torch, without the index of CPU builds) and a driver of its age",
    )


def _memory_bytes() -> int:
    limit = _read(_MEMORY_LIMIT)
    total = int(psutil.virtual_memory().available)
    return min(total, int(limit)) if limit.isdigit() else total


def memory(available_bytes: int) -> Look:
    """Whether there is memory to train in.

    :param available_bytes: What processes can still get.
    """
    shown = f"{decimal(available_bytes)} available"
    if available_bytes < _LEAST_MEMORY_BYTES:
        return _PROBLEM, shown, "even a small model needs 2 GB: end other programs"
    if available_bytes < _LITTLE_MEMORY_BYTES:
        return (
            _WARNING,
            shown,
            "enough for small models; BERT base wants 6 GB, or a smaller batch_size",
        )
    return _OK, shown, ""


def shared_memory(size_bytes: int) -> Look:
    """Whether processes that train together can share memory.

    :param size_bytes: Of ``/dev/shm``.
    """
    shown = decimal(size_bytes)
    if size_bytes > _LITTLE_SHARED_BYTES:
        return _OK, shown, ""
    return _WARNING, shown, "n_processes above 1 on GPUs wants more: docker run --shm-size=1g"


def open_files(n_files: int) -> Look:
    """Whether enough connections and files can be open at once.

    :param n_files: The limit of this process; -1 for none.
    """
    shown = "no limit" if n_files < 0 else f"at most {n_files}"
    advice = "ulimit -n 65536 before finetuner serve"
    if 0 <= n_files < _LEAST_FILES:
        return _PROBLEM, shown, advice
    return (_WARNING, shown, advice) if 0 <= n_files < _FEW_FILES else (_OK, shown, "")

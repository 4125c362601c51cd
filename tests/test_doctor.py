"""``finetuner doctor``: each check with fakes, and the command on this machine."""

import importlib.metadata
import json
import time

import pytest

from finetuner import __version__, doctor_command, machine_checks, service_checks
from finetuner.checkup import Check, CheckState, Finding, carry_out
from finetuner.client import Client

OK, WARNING, PROBLEM = CheckState.OK, CheckState.WARNING, CheckState.PROBLEM


def versions(**installed):
    def version(name):
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    return version


def test_a_check_that_fails_ends_no_other():
    def fail():
        raise ZeroDivisionError("by nothing")

    findings = carry_out([Check("a", fail), Check("b", lambda: (OK, "fine", ""))])
    told = "the check itself failed: ZeroDivisionError: by nothing"
    assert findings == [
        Finding("a", WARNING, told, "look at it by hand"),
        Finding("b", OK, "fine", ""),
    ]


@pytest.mark.parametrize(("version", "state"), [((3, 11, 9), OK), ((3, 12, 0), PROBLEM)])
def test_python(version, state):
    assert machine_checks.python(version)[0] is state


@pytest.mark.parametrize(
    ("installed", "state", "told"),
    [
        ({"numpy": "2.4.6", "jina": "3.34.0"}, OK, "2 packages are as asked for"),
        ({"numpy": "1.9", "jina": "3.34.0"}, PROBLEM, "numpy 1.9 (needs >=2)"),
        ({"numpy": "2.1"}, PROBLEM, "jina not installed (needs ==3.34.0)"),
    ],
)
def test_packages(installed, state, told):
    requirements = ["numpy>=2", "jina==3.34.0", 'wandb>=1; extra == "wandb"']
    assert machine_checks.packages(requirements, versions(**installed))[:2] == (state, told)


def test_pins():
    content = "# a comment of a==b\nnumpy==2.4.6\ntorch==2.13.0\nwandb==0.1\n"
    same = versions(numpy="2.4.6", torch="2.13.0+cpu")
    told = "2 packages are those of requirements.txt"
    assert machine_checks.pins(content, same) == (OK, told, "")
    state, told, _ = machine_checks.pins(content, versions(numpy="2.5", torch="2.13.0"))
    assert (state, told) == (WARNING, "numpy 2.5 (2.4.6 pinned)")
    assert machine_checks.pins("")[0] is OK


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ({"onnxruntime": "1.32"}, OK),
        ({"onnxruntime_gpu": "1.32"}, OK),
        ({"onnxruntime": "1.32", "onnxruntime_gpu": "1.32"}, PROBLEM),
        ({}, PROBLEM),
    ],
)
def test_onnx_runtime(installed, state):
    assert machine_checks.onnx_runtime(versions(**installed))[0] is state


@pytest.mark.parametrize(
    ("flags", "state", "told"),
    [
        ("fpu avx2", OK, "X: AVX2; precision auto is fp32; int8 graphs gain little without VNNI"),
        (
            "avx2 avx512f avx512_vnni amx_bf16",
            OK,
            "X: AVX2, AVX-512, VNNI, bf16; precision auto is bf16",
        ),
        ("fpu", WARNING, "X: none of AVX2 to bf16"),
    ],
)
def test_processor(flags, state, told):
    cpu_info = f"model name\t: X\nflags\t\t: {flags}\n\nmodel name\t: Y\nflags\t: none\n"
    assert machine_checks.processor(cpu_info)[:2] == (state, told)


@pytest.mark.parametrize(
    ("n_cores", "limit", "threads", "state", "told"),
    [
        (4, "", None, OK, "4"),
        (4, "max 100000", None, OK, "4"),
        (4, "400000 100000", "4", OK, "4; OMP_NUM_THREADS=4"),
        (4, "150000 100000", None, WARNING, "4, of which a limit leaves the time of 1.5"),
        (4, "", "8", WARNING, "4; OMP_NUM_THREADS=8"),
        (4, "", "1", WARNING, "4; OMP_NUM_THREADS=1"),
        (1, "", "1", OK, "1; OMP_NUM_THREADS=1"),
    ],
)
def test_cores(n_cores, limit, threads, state, told):
    environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
    assert machine_checks.cores(n_cores, limit, environment)[:2] == (state, told)


@pytest.mark.parametrize(
    ("path", "printed", "sees", "state", "told"),
    [
        (None, "", False, OK, "none: all runs on the processor"),
        ("/bin/x", "H100, 550.1\nH100, 550.1", True, OK, "H100, 550.1; H100, 550.1"),
        ("/bin/x", "H100, 550.1", False, WARNING, "H100, 550.1, which torch cannot use"),
        ("/bin/x", "", False, OK, "none"),
    ],
)
def test_gpu(path, printed, sees, state, told):
    found = machine_checks.gpu(lambda *_: printed, lambda _: path, lambda: sees)
    assert found[:2] == (state, told)


@pytest.mark.parametrize(
    ("look", "values"),
    [
        (machine_checks.memory, ((10**9, PROBLEM), (4 * 10**9, WARNING), (8 * 10**9, OK))),
        (machine_checks.shared_memory, ((2**26, WARNING), (2**30, OK))),
        (machine_checks.open_files, ((100, PROBLEM), (1024, WARNING), (65536, OK), (-1, OK))),
        (service_checks.free_space, ((10**8, PROBLEM), (2 * 10**9, WARNING), (10**10, OK))),
    ],
)
def test_amounts(look, values):
    assert [look(value)[0] for value, _ in values] == [state for _, state in values]


def test_volume(tmp_path, monkeypatch):
    assert service_checks.volume(tmp_path) == (OK, str(tmp_path), "")
    assert service_checks.volume(tmp_path / "new" / "er")[0] is WARNING
    (tmp_path / "file").write_text("")
    assert service_checks.volume(tmp_path / "file")[0] is PROBLEM

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(service_checks.tempfile, "TemporaryFile", refuse)
    state, told, _ = service_checks.volume(tmp_path)
    assert (state, told) == (PROBLEM, f"{tmp_path}: Permission denied")


def test_atomic_names(tmp_path):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    def replace(source, target):
        target.write_bytes(source.read_bytes())

    assert service_checks.atomic_names(tmp_path)[0] is OK
    found = service_checks.atomic_names(tmp_path, refuse)
    assert found[:2] == (PROBLEM, "no hard links (Operation not supported)")
    found = service_checks.atomic_names(tmp_path, replace)
    assert found[:2] == (PROBLEM, "a link took the place of a file that was there")
    assert list(tmp_path.iterdir()) == []


def test_sync_speed(tmp_path):
    # Begin and end of five writes: 1, 2, 300, 2, 3 ms, of which the median is 2.
    times = iter((0, 1, 10, 12, 20, 320, 400, 402, 500, 503))
    found = service_checks.sync_speed(tmp_path, lambda: next(times) / 1000)
    assert found == (OK, "2.0 ms for a small file, half the time", "")
    slow = iter(range(10))
    assert service_checks.sync_speed(tmp_path, lambda: next(slow))[0] is WARNING
    assert list(tmp_path.iterdir()) == []


def test_models(tmp_path):
    assert service_checks.models(tmp_path, lambda *_: None)[:2] == (WARNING, "none")
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    found = service_checks.models(tmp_path, lambda name, _: name == "bert-base-en" or None)
    assert found == (OK, "bert-base-en, tiny", "")


def test_server(fake):
    ours = {"name": "finetuner-flow", "version": __version__}
    fake.answers |= {"GET /": ours, "GET /whoami": {"name": "anonymous"}}
    assert service_checks.server() == (OK, f"version {__version__} at {fake.url}", "")
    fake.answers["GET /whoami"] = (401, {})
    assert service_checks.server()[0] is PROBLEM
    fake.answers["GET /"] = {**ours, "version": "9.9.9"}
    assert service_checks.server()[0] is WARNING
    for other in (b"<html>", {"name": "else"}, [1], (500, b"")):
        fake.answers["GET /"] = other
        assert service_checks.server()[:2] == (WARNING, f"something else answers at {fake.url}")
    assert service_checks.server(Client("http://127.0.0.1:9", timeout_s=1))[0] is OK


def test_ports():
    free, taken = (lambda _: True), (lambda _: False)
    assert service_checks.ports(free, taken) == (OK, "51000 and 51001 are free", "")
    assert service_checks.ports(taken, free)[:2] == (OK, "our server listens there")
    found = service_checks.ports(lambda port: port == 51001, taken)
    assert found[:2] == (WARNING, "another program listens at 51000 (gRPC)")


@pytest.mark.parametrize(
    ("tokens", "environment", "state"),
    [
        ((), {}, OK),
        (("a",), {}, WARNING),
        (("a",), {"FINETUNER_TOKEN": "x"}, OK),
        (("a",), {"FINETUNER_HOST": "else"}, OK),
    ],
)
def test_access(tokens, environment, state):
    assert service_checks.access(tokens, environment)[0] is state


def test_clock(fake):
    assert [service_checks.clock(lambda s=s: s)[0] for s in (None, 5.0, -90.0)] == [OK, OK, WARNING]
    fake.answers["GET /livez"] = {}
    assert abs(service_checks._skew_s()) < 30  # the answer's own header, which has whole seconds


def test_the_command_here(command, fake, tmp_path):
    fake.answers["GET /"] = {"name": "finetuner-flow", "version": __version__}
    fake.answers["GET /whoami"] = {"name": "anonymous"}
    begun_at = time.monotonic()
    found = json.loads(command("doctor", "--workspace", tmp_path, "--json").stdout)
    assert time.monotonic() - begun_at < 60
    assert len(found) == len({row["name"] for row in found}) == 19
    assert [row for row in found if row["state"] == "problem"] == []
    assert [row for row in found if "check itself failed" in row["found"]] == []
    assert set(found[0]) == {"name", "state", "found", "advice"}


def test_a_problem_is_1_and_a_warning_0(command, monkeypatch):
    checks = [Check("[red]", lambda: (WARNING, "so", "do [that]"))]
    monkeypatch.setattr(doctor_command, "machine_checks", lambda: checks)
    monkeypatch.setattr(doctor_command, "service_checks", lambda _: [])
    assert "do [that]" in command("doctor").stdout
    checks.append(Check("b", lambda: (PROBLEM, "bad", "")))
    assert "[red]" in command("doctor", exit_code=1).stdout

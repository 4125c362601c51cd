"""The rules of who imports whom, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT / "finetuner"
_EXECUTORS = _ROOT / "executors"
_MAX_FUNCTION_LINES = 50

# The core: each module imports only what stands to its left.
ORDER = (
    *(
        "errors",
        "put_off",
        "schema",
        "names",
        "callback",
        "config",
        "config_problems",
        "metrics",
        "files",
        "file_cache",
        "object_store",
        "json_lines",
        "lock",
        "holder",
        "heartbeat",
        "exits",
        "access",
        "audit",
        "failed_logins",
        "permissions",
        "signed_links",
        "gatekeeper",
        "data",
        "pairs",
        "linked_texts",
        "clean_pairs",
        "hold_out",
        "data_report",
        "csv_file",
        "zip_reader",
        "message_shape",
        "document_stream",
        "hardening",
        "wire",
    ),
    *(
        "datastore",
        "backbones",
        "device",
        "dropout",
        "pooling",
        "tokens",
        "vectors",
        "model_folder",
        "head",
        "models",
        "unpadded",
    ),
    *("adaptation", "batching", "losses", "pair_losses", "objective", "optimization"),
    *("validation_split", "training_set", "gradients", "collapse", "hard_negatives", "checkpoint"),
    *("trainer", "training", "artifact", "onnx_export", "backends", "encoder"),
    *("text_queue", "batcher"),
    *("vector_index", "inner_products", "search", "projection", "evaluation", "vector_evaluation"),
    *("quantization", "verdict", "states", "state_files"),
    *("run_metrics", "runs", "run_summary"),
    *("identity", "run_keys", "run_index", "run_store", "starting_model", "resubmission", "space"),
    *("artifact_store", "aliases", "targets", "alias_store", "alias_api", "retention"),
    *(
        "fetched_artifacts",
        "encoder_cache",
        "serving_metrics",
        "encode_parameters",
        "encode_request",
    ),
    *("watchdog", "text_index", "named_models", "warm_up", "search_api", "encode_api"),
    *("corpus_files", "corpus_parts", "corpus_lines", "corpus_parquet", "corpus_rows"),
    *("corpus_output", "corpus", "ray_cluster", "corpus_ray"),
    *("run_data", "logger_backends", "loggers", "monitoring", "submission", "request_check"),
    *("run_map", "run_evaluation", "publishing", "pace", "run_progress"),
    *("stopping", "worklog", "job", "worker"),
    *("run_queue", "silence", "interruption", "settling", "gpus"),
    *("worker_command", "tether", "ray_rank", "ray_run", "worker_process", "launcher"),
    *("publication", "supervisor"),
    *("run_parameters", "run_api"),
)
# What `import finetuner` loads: at module level only a few light modules of the core.
CLIENT = (
    *("__init__", "alias_verbs", "api", "check_verb", "client", "data_verbs", "experiment"),
    *("follow", "inference", "run"),
)
LIGHT = (
    *(
        "errors",
        "schema",
        "names",
        "callback",
        "config",
        "files",
        "data",
        "pairs",
        "csv_file",
        "backbones",
    ),
)
# The edge: the gateway, the service and the command line.
EDGE = (
    *("alias_command", "alias_routes", "cli", "data_command", "data_routes"),
    *("corpus_command", "encode_routes", "flow_calls", "http_api"),
    *("http_messages", "http_metrics", "hub_routes", "openai_routes", "openapi"),
    *("availability", "connections", "direct", "gc_command", "overload", "parts", "serve"),
    *("log_tail", "log_format", "request_log", "page_routes", "search_routes", "stream_routes"),
    *("grpc_access", "guarded_handler", "http_access", "http_server"),
    *("serve_command", "token_command", "vectors_command"),
    *("checkup", "machine_checks", "service_checks", "doctor_command"),
    *("command_errors", "exit_codes", "encode_command", "vector_files"),
    *("fit_command", "named_run", "run_command", "run_wait", "run_tables"),
)

_MODULES = sorted(path.relative_to(_PACKAGE).as_posix()[:-3] for path in _PACKAGE.rglob("*.py"))
_EXECUTOR_FILES = sorted(_EXECUTORS.rglob("*.py"))
_FILES = [*sorted(_PACKAGE.rglob("*.py")), *_EXECUTOR_FILES]


def _relative(path):
    return path.relative_to(_ROOT).as_posix()


def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _walk_module_level(node):
    """Yield what runs when the module is imported: no function bodies, nothing for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if _is_type_checking(child):
            continue
        yield child
        yield from _walk_module_level(child)


def _imports(nodes):
    """Return the dotted names that imports name: `a.b` and `a.b.c` for `from a.b import c`."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _modules_of_package(names):
    """Return the modules of finetuner among dotted names; `__init__` for what it defines itself.

    A bare `import finetuner` is nothing: the package is loaded with each of its modules anyway.
    """
    found = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head == "finetuner" and rest:
            module = rest.partition(".")[0]
            found.add(module if module in _MODULES else "__init__")
    return found


def _heads(names):
    return {name.partition(".")[0] for name in names}


def test_every_module_is_in_one_list():
    listed = [*ORDER, *CLIENT, *EDGE]
    assert len(listed) == len(set(listed))
    assert [module for module in _MODULES if module not in listed] == []


@pytest.mark.parametrize("module", [module for module in ORDER if module in _MODULES])
def test_a_core_module_imports_only_to_its_left(module):
    imported = _modules_of_package(_imports(ast.walk(_parse(_PACKAGE / f"{module}.py"))))
    allowed = ORDER[: ORDER.index(module)]
    assert sorted(imported - set(allowed)) == []


@pytest.mark.parametrize("module", [module for module in CLIENT if module in _MODULES])
def test_a_client_module_loads_only_light_ones(module):
    nodes = _walk_module_level(_parse(_PACKAGE / f"{module}.py"))
    imported = _modules_of_package(_imports(nodes))
    assert sorted(imported - set(LIGHT) - set(CLIENT)) == []


@pytest.mark.parametrize("module", [m for m in (*ORDER, *CLIENT) if m in _MODULES])
def test_neither_core_nor_client_import_jina_or_the_edge(module):
    names = _imports(ast.walk(_parse(_PACKAGE / f"{module}.py")))
    assert "jina" not in _heads(names)
    assert sorted(_modules_of_package(names) & set(EDGE)) == []


@pytest.mark.parametrize("path", _FILES, ids=_relative)
def test_no_relative_imports(path):
    assert [name for name in _imports(ast.walk(_parse(path))) if name.startswith(".")] == []


@pytest.mark.parametrize("path", _EXECUTOR_FILES, ids=_relative)
def test_an_executor_imports_no_other(path):
    others = {other.stem for other in _EXECUTOR_FILES if other.parent != path.parent}
    heads = _heads(_imports(ast.walk(_parse(path))))
    assert sorted(heads & (others | {"executors"})) == []


@pytest.mark.parametrize("path", _FILES, ids=_relative)
def test_no_pickle(path):
    heads = _heads(_imports(ast.walk(_parse(path))))
    assert sorted(heads & {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal"}) == []


def _n_code_lines(function):
    """Count the lines of a body; signature and docstring, which describe, are left out."""
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", _FILES, ids=_relative)
def test_no_long_functions(path):
    too_long = [
        (node.name, _n_code_lines(node))
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _n_code_lines(node) > _MAX_FUNCTION_LINES
    ]
    assert too_long == []


_OF_SERVICE = ("docarray", "fastapi", "hubble", "jina")
_OF_MODELS = ("onnxruntime", "scipy", "torch", "transformers")
# What libraries load that know more than texts, or would be used by some runs alone.
_OF_OTHERS = (
    *("aiohttp", "mlflow", "onnx", "pandas", "peft", "pyarrow", "ray", "scipy.linalg"),
    *("scipy.optimize", "scipy.stats", "sklearn", "tensorboard", "umap", "wandb"),
)


@pytest.mark.parametrize(
    ("start", "unwanted"),
    [
        ("finetuner", (*_OF_SERVICE, *_OF_MODELS, *_OF_OTHERS)),
        ("finetuner.cli", (*_OF_SERVICE, *_OF_MODELS, *_OF_OTHERS)),
        ("finetuner.worker", (*_OF_SERVICE, *_OF_MODELS, *_OF_OTHERS)),
        ("finetuner.run_api", ("fastapi", "jina", *_OF_MODELS, *_OF_OTHERS)),
        ("finetuner.supervisor", (*_OF_SERVICE, *_OF_MODELS, *_OF_OTHERS)),
        pytest.param(
            "finetuner.job",
            (*_OF_SERVICE, "onnxruntime", *_OF_OTHERS),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_start_loads_nothing_that_can_wait(start, unwanted):
    """Each of these costs every process of its kind tenths of a second, or seconds."""
    code = f"import sys, {start}; print([n for n in {unwanted} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(\n    a,\n):\n    return (\n        a\n    )", 3),
        ('def f():\n    """Doc.\n\n    More.\n    """\n    a = 1\n\n    return a', 3),
        ('def f():\n    """Doc."""', 0),
    ],
)
def test_how_lines_are_counted(source, expected):
    (function,) = ast.parse(source).body
    assert _n_code_lines(function) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import finetuner", set()),
        ("import finetuner.runs as r", {"runs"}),
        ("from finetuner import runs", {"runs"}),
        ("from finetuner import fit", {"__init__"}),
        ("from finetuner.runs import Run", {"runs"}),
        ("def f():\n    from finetuner.runs import Run", {"runs"}),
        ("import finetunerx.runs\nimport other", set()),
    ],
)
def test_how_imports_are_read(source, expected):
    assert _modules_of_package(_imports(ast.walk(ast.parse(source)))) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try:\n    import a\nexcept ImportError:\n    import b", {"a", "b"}),
        ("def f():\n    import a", set()),
        ("class A:\n    import a\n    def f(self):\n        import b", {"a"}),
        ("if TYPE_CHECKING:\n    import a\nif x:\n    import b", {"b"}),
    ],
)
def test_what_counts_as_module_level(source, expected):
    assert _imports(_walk_module_level(ast.parse(source))) == expected

"""Code that comes with a model is never run, however the model names it."""

import json
import shutil
from contextlib import suppress

import pytest

import finetuner
from finetuner.artifact import Manifest, pack
from finetuner.errors import ConfigError, CorruptedArtifact, ModelNotFoundError
from finetuner.models import load_model, read_options

_CANARY = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({elsewhere!r}).touch()
class Anything:
    pass
"""
_AUTO_MAP = {
    "AutoConfig": "custom.Anything",
    "AutoModel": "custom.Anything",
    "AutoTokenizer": ["custom.Anything", "custom.Anything"],
}


@pytest.fixture
def canary(tmp_path):
    """Where the code of a model would leave a trace, beside its own folder or in a copy of it."""
    return tmp_path / "ran-elsewhere"


@pytest.fixture
def folder(tmp_path, tiny_model_folder, canary):
    """A model whose every setting names code of its own."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / "custom.py").write_text(_CANARY.format(elsewhere=str(canary)))
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "auto_map": _AUTO_MAP}))
    return folder


def change(folder, name, **settings):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def assert_nothing_ran(folder, canary):
    assert not canary.exists()
    assert list(folder.parent.rglob("ran")) == []


def test_a_known_type_loads_without_its_code(folder, canary):
    assert load_model(folder).model.dim == 32
    assert_nothing_ran(folder, canary)


def test_an_unknown_type_is_refused(folder, canary):
    change(folder, "config.json", model_type="of-their-own", architectures=["Anything"])
    with pytest.raises(ModelNotFoundError, match="the model in `model` cannot be loaded"):
        load_model(folder)
    assert_nothing_ran(folder, canary)


def test_an_unknown_tokenizer_runs_nothing(folder, canary):
    change(folder, "tokenizer_config.json", tokenizer_class="Anything")
    with suppress(ModelNotFoundError):  # refused or not, as transformers will have it
        load_model(folder)
    assert_nothing_ran(folder, canary)


def test_a_module_of_sentence_transformers_is_refused(folder, canary):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom.Anything"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="has a stage `Anything`; known: Transformer"):
        load_model(folder)
    assert_nothing_ran(folder, canary)


def test_an_artifact_runs_nothing(folder, canary, tmp_path):
    manifest = Manifest(
        run_name="r",
        model="tiny",
        dim=32,
        pooler="mean",
        normalize=True,
        max_length=128,
        input_names=("input_ids", "attention_mask", "token_type_ids"),
        metrics={},
        verdicts={},
        has_onnx=False,
        created_at="",
    )
    pack(folder, tmp_path / "r.zip", manifest=manifest)
    with pytest.raises(
        CorruptedArtifact, match="`r` holds `custom.py`: pickles and code are refused"
    ):
        finetuner.get_model(str(tmp_path / "r.zip"), device="cpu")
    assert_nothing_ran(folder, canary)


@pytest.mark.parametrize("value", [True, False, 1, "yes"])
def test_nobody_can_ask_for_it(folder, canary, value):
    message = "trust_remote_code is refused: code that comes with a model is never run here"
    with pytest.raises(ConfigError, match=message):
        read_options({"trust_remote_code": value})
    with pytest.raises(ConfigError, match=message):
        finetuner.build_model(str(folder), device="cpu", model_options={"trust_remote_code": value})
    assert_nothing_ran(folder, canary)

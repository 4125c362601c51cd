import json

import pytest

from finetuner import backbones
from finetuner.errors import ModelNotFoundError


def make(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    return folder


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_places_are_searched_in_order(tmp_path, monkeypatch):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    package = make(tmp_path / "package")
    monkeypatch.setattr(backbones, "_locate_in_package", lambda backbone: package)
    workspace = tmp_path / "workspace"
    assert backbones.locate(name, workspace) == package
    by_display_name = make(workspace / "models" / "all-minilm-l6-v2")
    assert backbones.locate(name, workspace) == by_display_name
    by_id = make(workspace / "models" / name)
    assert backbones.locate("All-MiniLM-L6-v2", workspace) == by_id
    folder = make(tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    assert backbones.locate(name, workspace).resolve() == folder
    backbones.check_available(name, workspace)


@pytest.mark.parametrize("call", [backbones.locate, backbones.check_available])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bert-base-casd", "no model `bert-base-casd`; did you mean `bert-base-cased`. looked for"),
        ("no/such", "1. a folder .* 2. `models/no/such` .* 3. an installed .* 4. `no/such` in the"),
        ("a b c", "no model `a b c`"),
    ],
)
def test_error_names_all_four_places(tmp_path, model, message, call):
    with pytest.raises(ModelNotFoundError, match=message):
        call(model, tmp_path)


def test_a_name_cannot_leave_the_models(tmp_path, monkeypatch):
    make(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    with pytest.raises(ModelNotFoundError, match="no model"):
        backbones.locate("x/../../secret", tmp_path)

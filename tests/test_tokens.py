import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetuner.errors import CorruptedArtifact, DataError
from finetuner.files import read_json, write_json
from finetuner.tokens import INPUT_NAMES, TextTokenizer, Truncate

_TEXTS = ["The apple, now!", "we like the river of today", "a", "", "図書館 🚀"]


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


def _load(folder, max_length=128, input_names=INPUT_NAMES):
    return TextTokenizer.load(folder, max_length=max_length, input_names=input_names)


@pytest.mark.parametrize("max_length", [4, 5, 128])
def test_ids_and_arrays_are_those_of_transformers(tiny_model_folder, max_length):
    expected = AutoTokenizer.from_pretrained(tiny_model_folder)(
        _TEXTS,
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="np",
        return_token_type_ids=True,
    )
    tokenizer = _load(tiny_model_folder, max_length)
    inputs = tokenizer.pad(tokenizer.tokenize(_TEXTS))
    assert list(inputs) == list(INPUT_NAMES)
    for name in INPUT_NAMES:
        assert inputs[name].dtype == np.int64
        np.testing.assert_array_equal(inputs[name], expected[name])


def test_no_texts_give_an_empty_list(tiny_model_folder):
    assert _load(tiny_model_folder).tokenize([]) == []


def test_lower_case_is_the_same(tiny_model_folder):
    tokenizer = _load(tiny_model_folder)
    assert tokenizer.tokenize(["THE Apple"]) == tokenizer.tokenize(["the apple"])


@pytest.mark.parametrize("max_length", [4, 6, 9])
def test_a_long_text_is_cut_and_keeps_its_special_tokens(tiny_model_folder, max_length):
    (ids,) = _load(tiny_model_folder, max_length).tokenize(["apple " * 50])
    (apple,) = set(ids[1:-1])
    assert ids == [2, *[apple] * (max_length - 2), 3]


def test_pad_by_hand(tiny_model_folder):
    definition = (tiny_model_folder / "tokenizer.json").read_text()
    tokenizer = TextTokenizer.create(
        definition, max_length=8, pad_id=7, input_names=["token_type_ids", "input_ids"]
    )
    inputs = tokenizer.pad([[2, 5, 3], [2]])
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[2, 5, 3], [2, 7, 7]],
        "token_type_ids": [[0, 0, 0], [0, 0, 0]],
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("attention_mask", "input_ids"), ("input_ids", "attention_mask")),
        (("token_type_ids", "attention_mask", "input_ids"), INPUT_NAMES),
        (("input_ids", "something"), ("input_ids",)),
    ],
)
def test_input_names_have_one_order(tiny_model_folder, names, expected):
    assert _load(tiny_model_folder, input_names=names).input_names == expected


@pytest.mark.parametrize(
    ("pad_token", "pad_id"),
    [
        ("[PAD]", 0),
        ("[SEP]", 3),
        ({"content": "[MASK]", "lstrip": False}, 4),
        ("[no such token]", 0),
        (None, 0),
    ],
)
def test_padding_token_is_read(folder, pad_token, pad_id):
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**config, "pad_token": pad_token})
    tokenizer = _load(folder)
    assert tokenizer.pad_id == pad_id
    assert tokenizer.pad([[2, 3], [2]])["input_ids"].tolist() == [[2, 3], [2, pad_id]]


def test_padding_token_is_guessed_when_the_file_names_none(folder):
    write_json(folder / "tokenizer_config.json", {})
    assert _load(folder).pad_id == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"a":', b"\xff\xfe"])
def test_unreadable_files_are_refused(folder, name, content):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(CorruptedArtifact, match="the tokenizer's files cannot be read: "):
        _load(folder)


def test_saved_truncation_and_padding_are_replaced(folder):
    definition = read_json(folder / "tokenizer.json")
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    definition["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    write_json(folder / "tokenizer.json", definition)
    assert [len(ids) for ids in _load(folder, 10).tokenize(["a b c d e", "a"])] == [7, 3]


def test_which_end_is_cut(tiny_model_folder):
    tokenizer = _load(tiny_model_folder, 6)
    assert tokenizer.max_length == 6
    whole = _load(tiny_model_folder).tokenize(["one two three four five six"])[0]
    cls, sep = whole[0], whole[-1]
    text = ["one two three four five six"]
    assert len(whole) > 6
    assert tokenizer.tokenize(text) == [[cls, *whole[1:5], sep]]
    assert tokenizer.tokenize(text, truncate=Truncate.LEFT) == [[cls, *whole[-5:-1], sep]]
    assert tokenizer.tokenize(text) == [[cls, *whole[1:5], sep]]


def test_a_text_that_may_not_be_cut(tiny_model_folder):
    tokenizer = _load(tiny_model_folder, 6)
    short = ["a b c d"]
    assert tokenizer.tokenize(short, truncate=Truncate.ERROR) == tokenizer.tokenize(short)
    with pytest.raises(DataError, match="text 2 has 7 tokens, the model takes 6: shorten it, or"):
        tokenizer.tokenize(["a", "a b c d e"], truncate=Truncate.ERROR)


def test_tokens_explained(tiny_model_folder):
    tokenizer = _load(tiny_model_folder)
    ((first, *middle, last),) = tokenizer.explain(["The  apple"])
    assert (first.text, first.start, first.end, first.is_special) == ("[CLS]", 0, 0, True)
    assert (last.text, last.is_special) == ("[SEP]", True)
    assert "".join(token.text.removeprefix("##") for token in middle) == "theapple"
    assert not any(token.is_special for token in middle)
    assert (middle[0].start, middle[-1].end) == (0, len("The  apple"))
    ids = [token.id for token in (first, *middle, last)]
    assert [ids] == tokenizer.tokenize(["The  apple"])
    assert tokenizer.explain([]) == []


def test_token_ids_are_taken_as_they_are(tiny_model_folder):
    tokenizer = _load(tiny_model_folder, 6)
    ids = tokenizer.tokenize(["a b", "c"])
    assert tokenizer.check_token_ids(ids) == ids
    assert tokenizer.check_token_ids([]) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "text 2 must be a string, or a list of 1 to 6 token ids"),
        ([1] * 7, "text 2 must be a string, or a list of 1 to 6 token ids"),
        (1, "text 2 must be a string, or a list of 1 to 6 token ids"),
        ([1, True], "text 2: a token id is a whole number from 0 to .*, got `True`"),
        ([1.0], "text 2: a token id is a whole number from 0 to .*, got `1.0`"),
        ([-1], "text 2: a token id is a whole number from 0 to .*, got `-1`"),
        ([10**6], "text 2: a token id is a whole number from 0 to .*, got `1000000`"),
    ],
)
def test_what_are_no_token_ids(tiny_model_folder, ids, message):
    with pytest.raises(DataError, match=message):
        _load(tiny_model_folder, 6).check_token_ids([[1], ids])


@pytest.mark.parametrize(("longest", "width"), [(1, 8), (8, 8), (9, 16), (127, 128), (128, 128)])
def test_a_width_may_be_a_multiple_up_to_the_maximum_length(tiny_model_folder, longest, width):
    tokenizer = TextTokenizer.load(tiny_model_folder, max_length=128, input_names=INPUT_NAMES)
    inputs = tokenizer.pad([[5] * longest, [7]], multiple=8)
    assert inputs["attention_mask"].shape == (2, width)
    assert inputs["attention_mask"].sum(axis=1).tolist() == [longest, 1]
    short = TextTokenizer.load(tiny_model_folder, max_length=10, input_names=INPUT_NAMES)
    assert short.pad([[5] * 9], multiple=8)["input_ids"].shape == (1, 10)

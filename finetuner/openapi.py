"""What ``/docs`` says of bodies and answers, drawn from the classes that read them."""

from __future__ import annotations

from typing import Any

from finetuner.callback import CALLBACKS
from finetuner.config import RunConfig
from finetuner.data_report import Form
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.schema import describe
from finetuner.search_api import SearchParameters
from finetuner.states import Status
from finetuner.verdict import Outcome

_TEXT = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _rows(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": {**_object(**properties), "required": required}}


_ROWS = {
    "oneOf": [
        {"type": "string", "description": "the name of stored data"},
        {
            "type": "array",
            "items": {"type": "array", "minItems": 2, "maxItems": 2},
            "description": "[text, label] rows",
        },
        _rows(["text", "label"], text=_TEXT, label={}, id=_TEXT),
        _rows(
            ["anchor", "positive"],
            anchor=_TEXT,
            positive=_TEXT,
            negative={"type": ["string", "null"]},
        ),
        _rows(
            ["sentence1", "sentence2", "score"],
            sentence1=_TEXT,
            sentence2=_TEXT,
            score={"type": "number"},
        ),
    ]
}


def _fit_body() -> dict[str, Any]:
    schema = describe(RunConfig)
    schema["properties"]["train_data"] = {**_ROWS, "description": "the texts to train on"}
    schema["properties"]["callbacks"]["items"] = {
        "oneOf": [
            {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"const": name}, "options": describe(cls)},
            }
            for name, cls in CALLBACKS.items()
        ]
    }
    schema["required"] = ["model", "train_data"]
    schema["example"] = {
        "model": "all-minilm-l6-v2",
        "train_data": [
            ["How do I become a geologist?", "1"],
            ["What should I do to be a great geologist?", "1"],
            ["How do I boil an egg?", "2"],
            ["What is the best way to boil eggs?", "2"],
        ],
        "run_name": "first-run",
        "epochs": 1,
    }
    return schema


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a request body for ``openapi_extra``."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_POINTS = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
}
MAP = _answer(
    "Points of a plane, by evaluation; `after` is turned onto `before`",
    _object(
        evaluations={
            "type": "object",
            "additionalProperties": _object(
                texts={"type": "array", "items": _TEXT},
                labels={"type": "array", "items": {"type": ["string", "null"]}},
                roles={"type": "array", "items": {"type": "string", "enum": ["query", "index"]}},
                n_texts={"type": "integer"},
                n_shown={"type": "integer"},
                methods={
                    "type": "object",
                    "additionalProperties": _object(
                        before=_POINTS,
                        after={"oneOf": [_POINTS, {"type": "null"}]},
                        explained=_object(before={"type": "number"}, after={}),
                    ),
                },
            ),
        }
    ),
)
FIT_BODY = _fit_body()
RUN = _answer(
    "The run",
    _object(
        name=_TEXT,
        experiment_name=_TEXT,
        status={"type": "string", "enum": [status.value for status in Status]},
        details=_TEXT,
        description=_TEXT,
        created_at=_TEXT,
        artifact_id=_TEXT,
        config=describe(RunConfig),
        changed_at=_TEXT,
        n_starts={"type": "integer"},
        position={"type": ["integer", "null"], "description": "in the queue, from 1"},
        progress=_or_null(
            _object(
                **dict.fromkeys(("epoch", "n_epochs", "step", "n_steps"), {"type": "integer"}),
                **dict.fromkeys(("n_steps_done", "n_steps_total"), {"type": "integer"}),
                **dict.fromkeys(("loss", "active"), {"type": "number"}),
                **dict.fromkeys(("texts_per_s", "eta_s"), {"type": ["number", "null"]}),
            )
        ),
        metric=_or_null(
            _object(
                name=_TEXT,
                **dict.fromkeys(("before", "after", "best"), {"type": "number"}),
                best_epoch={"type": "integer"},
            )
        ),
        verdict={"type": ["string", "null"], "enum": [*(o.value for o in Outcome), None]},
    ),
)
RUN_BEFORE = {**RUN, "description": "The run that this request has made before"}
_TEXTS = {"type": "array", "items": _TEXT}
_NUMBER = {"type": "integer"}


def _list(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": _object(**properties)}


_PROBLEMS = _list(field=_TEXT, message=_TEXT)
_DATA_REPORT = _object(
    form={"type": "string", "enum": [form.value for form in Form]},
    **{
        name: _NUMBER
        for name in (
            *("n_rows", "n_texts", "n_labels", "n_repeated", "n_ambiguous"),
            "n_alone",
        )
    },
    class_sizes=_list(**{"from": _NUMBER, "to": _NUMBER, "n_labels": _NUMBER}),
    largest=_list(label=_TEXT, n_texts=_NUMBER),
    preview=_list(),
    repeated=_list(text=_TEXT, label=_TEXT, n=_NUMBER),
    ambiguous=_list(text=_TEXT, labels=_TEXTS),
    lengths=_object(p50=_NUMBER, p99=_NUMBER, max=_NUMBER),
)
CHECKED = _answer(
    "All that would be refused, and what was found",
    _object(
        problems=_PROBLEMS,
        warnings=_PROBLEMS,
        config=_or_null(describe(RunConfig)),
        train_data=_or_null(_DATA_REPORT),
        evaluation=_or_null(_object(n_queries=_NUMBER, n_index=_NUMBER, n_labels=_NUMBER)),
        size_bytes=_NUMBER,
        free_bytes=_NUMBER,
        has_gpu={"type": "boolean"},
    ),
)
_ENCODE_PARAMETERS = describe(EncodeParameters)
_TEXT_PARAMETERS = describe(TextParameters)
_EXAMPLE = {"parameters": {"artifact": "first-run"}}


def _body(parameters: dict[str, Any], example: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {
        **_object(**properties, parameters=parameters),
        "required": list(properties),
        "additionalProperties": False,
        "example": {**example, **_EXAMPLE},
    }


ENCODE_BODY = _body(
    _ENCODE_PARAMETERS,
    {"data": [{"text": "some text to encode"}]},
    data={"type": "array", "items": _object(text=_TEXT, id={"type": ["string", "integer"]})},
)
SIMILARITY_BODY = _body(
    _ENCODE_PARAMETERS,
    {"queries": ["a question"], "texts": ["an answer", "another"]},
    queries=_TEXTS,
    texts=_TEXTS,
)
TOKENIZE_BODY = _body(_TEXT_PARAMETERS, {"texts": ["some text"]}, texts=_TEXTS)
RANK_BODY = _body(
    _ENCODE_PARAMETERS,
    {"query": "a question", "texts": ["an answer", "another"]},
    query=_TEXT,
    texts=_TEXTS,
)
RANK_BODY["properties"]["top_k"] = {
    "type": "integer",
    "minimum": 1,
    "description": "how many texts to return; all when left out",
}
SEARCH_BODY = _body(
    describe(SearchParameters),
    {"data": [{"text": "a query"}]},
    data={"type": "array", "items": _object(text=_TEXT), "minItems": 1, "maxItems": 1},
)
_SECONDS = {"type": "number"}
SEARCH_RESULT = _answer(
    "The nearest texts",
    _object(
        ready={"const": True},
        artifact=_TEXT,
        untuned={"type": "boolean"},
        n_texts={"type": "integer"},
        results={
            "type": "array",
            "items": _object(
                text=_TEXT,
                label={"type": ["string", "null"]},
                score={"type": "number", "description": "the cosine"},
            ),
        },
        encode_s=_SECONDS,
        search_s=_SECONDS,
    ),
)
SEARCH_IN_WORK = _answer(
    "How far the index is, which is made at the first search: ask again",
    _object(ready={"const": False}, n_done={"type": "integer"}, n_texts={"type": "integer"}),
)
_TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
EMBEDDINGS_BODY = {
    **_object(
        input={"oneOf": [_TEXT, _TEXTS, _TOKEN_IDS, {"type": "array", "items": _TOKEN_IDS}]},
        model={"type": "string", "description": "alias, run name, `experiment/run` or artifact id"},
        encoding_format={"type": "string", "enum": ["float", "base64"]},
        user={"type": "string", "description": "who asks; clients take turns"},
        **{
            name: schema
            for name, schema in _ENCODE_PARAMETERS["properties"].items()
            if name not in ("artifact", "batch_size", "client")
        },
    ),
    "required": ["input", "model"],
    "additionalProperties": False,
    "example": {"input": ["some text to encode"], "model": "first-run"},
}
ENCODE_RESULT = _answer(
    "The vectors, in the order of the texts",
    _object(
        data={
            "type": "array",
            "items": _object(
                id=_TEXT, text=_TEXT, embedding={"type": "array", "items": {"type": "number"}}
            ),
        },
        artifact=_TEXT,
        artifact_id=_TEXT,
        digest=_TEXT,
        backend=_TEXT,
        precision=_TEXT,
        dtype=_TEXT,
        dim={"type": "integer"},
        n_tokens={"type": "integer"},
    ),
)
ERROR = _answer("What was wrong, and what to do", _object(error=_TEXT, detail=_TEXT))
OPENAI_ERROR = _answer(
    "What was wrong, and what to do",
    _object(error=_object(message=_TEXT, type=_TEXT, param={"type": "null"}, code=_TEXT)),
)

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from finetuner.errors import ConfigError, FinetunerError, FinetunerServerError, error_class
from finetuner.files import read_json, replacing, write_json
from finetuner.names import check_data_name, check_name, random_run_name
from finetuner.schema import describe, documented, read


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str = documented("what it is called")
    count: int = 3
    rate: float | None = None
    on: bool = False
    colour: Colour = Colour.RED
    inner: tuple[Inner, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    anything: Any = None


def test_read_builds_what_the_data_say():
    data = {"name": "a", "count": 4.0, "rate": 1, "colour": "blue", "inner": [{"size": 2}]}
    assert read(Outer, data, "x") == Outer("a", 4, 1.0, False, Colour.BLUE, (Inner(2),))
    assert type(read(Outer, data, "x").count) is int


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "^x must be an object, got a list$"),
        ({"nmae": 1}, "^unknown field `nmae` in x; did you mean `name`. known: name, count"),
        ({"zzz": 1}, "^unknown field `zzz` in x; known: name"),
        ({}, "^x needs the field `name`$"),
        ({"name": 5}, "^x.name must be a string, got `5`$"),
        ({"name": None}, "^x.name must be a string, got null$"),
        ({"name": "a", "count": True}, "^x.count must be a whole number, got a boolean$"),
        ({"name": "a", "count": 1.5}, "^x.count must be a whole number, got `1.5`$"),
        ({"name": "a", "count": "3"}, "^x.count must be a whole number, got a string$"),
        ({"name": "a", "rate": float("nan")}, "^x.rate must be a finite number, got `nan`$"),
        ({"name": "a", "rate": True}, "^x.rate must be a finite number, got a boolean$"),
        ({"name": "a", "on": 1}, "^x.on must be true or false, got `1`$"),
        ({"name": "a", "colour": "green"}, "^x.colour must be one of red, blue; got `green`$"),
        ({"name": "a", "colour": [1]}, "^x.colour must be one of red, blue; got a list$"),
        ({"name": "a", "inner": {}}, "^x.inner must be a list, got an object$"),
        ({"name": "a", "inner": [{"size": "s"}]}, r"^x.inner\[0\].size must be a whole number"),
        ({"name": "a", "options": []}, "^x.options must be an object, got a list$"),
    ],
)
def test_read_says_what_is_wrong(data, message):
    with pytest.raises(ConfigError, match=message):
        read(Outer, data, "x")


def test_description_is_of_the_same_class():
    schema = describe(Outer)
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "name": {"type": "string", "description": "what it is called"},
        "count": {"type": "integer", "default": 3},
        "rate": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "on": {"type": "boolean", "default": False},
        "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "inner": {"type": "array", "items": describe(Inner), "default": ()},
        "options": {"type": "object"},
        "anything": {},
    }


def test_replacing_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_names():
    assert check_name("finetune-quora-dataset-bert-base-cased", "run name")
    assert check_data_name("quora_train.da") == "quora_train.da"
    made = {random_run_name() for _ in range(50)}
    assert len(made) > 45
    assert all(check_name(name, "run name") for name in made)
    for bad in ("a b", "a/b", "..", "a\n", "ä", "-a"):
        with pytest.raises(ConfigError, match="the run name `.*` is not allowed; use 1 to 128"):
            check_name(bad, "run name")


def all_errors(cls=FinetunerError):
    return [cls, *(error for sub in cls.__subclasses__() for error in all_errors(sub))]


@pytest.mark.parametrize("cls", all_errors())
def test_errors_travel_by_name_and_are_builtins_too(cls):
    assert error_class(cls.__name__) is cls
    assert 400 <= cls.http_status < 600
    leaf = not cls.__subclasses__()
    assert not leaf or any(base.__module__ == "builtins" for base in cls.__mro__[1:-3])


def test_unknown_error_name():
    assert error_class("KeyError") is None
    error = FinetunerServerError("The server failed", "no space", 500)
    assert str(error) == "The server failed (500): no space"

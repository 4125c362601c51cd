"""What our own description of the HTTP side allows, and what it does not, never ends in an internal error."""

import json
from contextlib import suppress
from urllib.parse import quote

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
# Names that exist are among them, so that more than the search for them is tried.
STRINGS = st.sampled_from(["finished", "default", "tiny", "a text", "", "../x", "\x00"]) | st.text()
SCALARS = {
    "string": STRINGS,
    "integer": st.integers(-2, 100) | st.integers(),
    "number": st.floats(),
    "boolean": st.booleans(),
    "null": st.none(),
}
# A run that is started goes on beside the tests, and one that is deleted is missing to others.
LEFT_OUT = {("post", "/fit"), ("delete", "/runs"), ("delete", "/runs/{run_name}")}


def values_of(schema):
    """Return a strategy of values that a JSON schema allows, and now and then of any other."""
    return st.integers(0, 9).flatmap(lambda n: JSON if n == 0 else allowed_by(schema))


def allowed_by(schema):
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of(*map(values_of, schema[several]))
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of(*(allowed_by({**schema, "type": one}) for one in kind))
    if kind == "object":
        fields = {name: values_of(field) for name, field in schema.get("properties", {}).items()}
        required = set(schema.get("required", ()))
        given = {name: fields.pop(name) for name in required & set(fields)}
        return st.fixed_dictionaries(given, optional=fields)
    if kind == "array":
        return st.lists(values_of(schema.get("items", {})), max_size=4)
    return SCALARS.get(kind, JSON)


def operations(description):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            if (method, path) not in LEFT_OUT:
                content = operation.get("requestBody", {}).get("content", {})
                schema = content.get("application/json", {}).get("schema")
                yield method, path, [one["name"] for one in operation.get("parameters", ())], schema


def try_out(server, method, path, names, schema):
    """Send an operation what may come to anyone's mind; return how often."""
    n_sent = 0

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        values=st.fixed_dictionaries(dict.fromkeys(names, STRINGS)),
        query=st.dictionaries(
            st.sampled_from(["follow", "page", "size", "x"]), STRINGS, max_size=1
        ),
        body=st.none() if schema is None else values_of(schema),
    )
    def send(values, query, body):
        nonlocal n_sent
        filled = path
        for name, value in values.items():
            with suppress(UnicodeEncodeError):  # half a surrogate pair is in no URL
                filled = filled.replace(f"{{{name}}}", quote(value, safe=""))
        data = None if schema is None else json.dumps(body)
        answer = requests.request(method, server.url + filled, params=query, data=data, timeout=60)
        assert answer.status_code < 500, (method, filled, query, data, answer.text)
        n_sent += 1

    send()
    return n_sent


def test_nothing_that_is_sent_is_an_internal_error(server, finished_run):
    description = server.get("/openapi.json").json()
    n_sent = sum(try_out(server, *operation) for operation in operations(description))
    assert n_sent > 500
    assert server.get("/readyz").json() == {"ready": True}

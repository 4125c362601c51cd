"""What the EncoderExecutor answers, without a Flow."""

import asyncio
import threading

import numpy as np
import pytest

from finetuner.encode_api import EncodeAPI
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.encoder import load_encoder
from finetuner.errors import (
    ArtifactNotFound,
    ConfigError,
    DataError,
    DeadlineExceededError,
    DigestMismatchError,
    OverloadedError,
)
from finetuner.run_store import RunStore
from finetuner.schema import read

TEXTS = ["the apple", "a much longer text about the river and the bank", "x", "the apple"]


@pytest.fixture(scope="module")
def volume(publish_run, tmp_path_factory):
    """A volume with a finished run, which has the prompt `query`."""
    root = tmp_path_factory.mktemp("volume")
    publish_run(root, "one", prompts={"query": "find the "})
    return root


@pytest.fixture(scope="module")
def encoder(volume):
    return load_encoder(volume / "runs" / "default" / "one" / "one.zip")


@pytest.fixture
def api(volume):
    api = EncodeAPI(volume, artifact="one")
    yield api
    api.close()


def encode(api, texts, **parameters):
    return asyncio.run(api.encode(texts, read(EncodeParameters, parameters, "parameters")))


def test_vectors_are_the_encoders_and_say_where_they_come_from(api, encoder, volume):
    found = encode(api, TEXTS)
    np.testing.assert_allclose(found.vectors, encoder.encode(TEXTS), atol=1e-6)
    times = {name: found.tags.pop(name) for name in ("tokenize_s", "queue_s", "inference_s")}
    assert all(0 <= value < 60 for value in times.values())
    run = RunStore(volume).get("one")
    assert found.tags == {
        "artifact": "one",
        "artifact_id": run.spec()["artifact_id"],
        "digest": encoder.digest,
        "backend": "torch",
        "precision": "fp32",
        "dim": 32,
        "dtype": "float32",
        "n_tokens": sum(map(len, encoder.tokenizer.tokenize(TEXTS))),
    }


def test_no_texts(api):
    found = encode(api, [])
    assert found.vectors.shape == (0, 32)
    assert found.tags["n_tokens"] == 0


def test_a_text_does_not_depend_on_those_beside_it(api, encoder):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])

    async def at_once():
        parameters = [EncodeParameters(client=str(number)) for number in range(20)]
        return await asyncio.gather(*(api.encode(TEXTS, asked) for asked in parameters))

    for found in asyncio.run(at_once()):
        np.testing.assert_allclose(found.vectors, alone, atol=1e-6)


def test_prompts_go_before_each_text(api, encoder):
    expected = encoder.encode([f"find the {text}" for text in TEXTS])
    by_name = encode(api, TEXTS, prompt_name="query").vectors
    by_text = encode(api, TEXTS, prompt="find the ").vectors
    np.testing.assert_allclose(by_name, expected, atol=1e-6)
    np.testing.assert_allclose(by_text, expected, atol=1e-6)


def test_vectors_in_another_form(api, encoder):
    found = encode(api, TEXTS, dimensions=16.0, dtype="int8")
    cut = encoder.encode(TEXTS)[:, :16]
    for row, vector in zip(found.vectors, cut, strict=True):
        assert row.tolist() == [round(127 * x) for x in vector / np.abs(vector).max()]
    assert (found.tags["dim"], found.tags["dtype"]) == (16, "int8")
    packed = encode(api, TEXTS, dtype="binary")
    assert (packed.vectors.shape, packed.tags["dim"]) == ((4, 4), 32)


def test_token_ids_instead_of_texts(api, encoder):
    ids = encoder.tokenizer.tokenize(TEXTS)
    found = encode(api, ids)
    np.testing.assert_allclose(found.vectors, encoder.encode(TEXTS), atol=1e-6)
    with pytest.raises(DataError, match="text 2 must be a string, or a list of 1 to 128 token ids"):
        encode(api, [[5], []])
    with pytest.raises(DataError, match="text 1 must be a string, or a list"):
        encode(api, [5, None])
    with pytest.raises(DataError, match="text 2: the text must be a string, got"):
        encode(api, ["a", [5]])


def test_a_text_that_may_not_be_cut(api, encoder):
    long = "apple " * 500
    with pytest.raises(DataError, match="text 1 has .* tokens, the model takes 128"):
        encode(api, [long], truncate="error")
    assert encode(api, [long], truncate="left").tags["n_tokens"] == 128


def test_a_pinned_digest(api, encoder):
    assert encode(api, ["x"], digest=encoder.digest).tags["digest"] == encoder.digest
    with pytest.raises(
        DigestMismatchError, match=f"served with the digest {encoder.digest}, not 00"
    ):
        encode(api, ["x"], digest="00")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"artifact": "two"}, ArtifactNotFound, "no run and no artifact `two`"),
        ({"prompt": "a", "prompt_name": "b"}, ConfigError, "give prompt or prompt_name, not both"),
        ({"prompt_name": "nope"}, ConfigError, "has no prompt `nope`; it has: query"),
        ({"batch_size": 0}, ConfigError, "parameters.batch_size must be at least 1, got 0"),
        ({"timeout_s": -1}, ConfigError, "parameters.timeout_s must be above 0, got -1"),
        ({"dimensions": 33}, ConfigError, "dimensions must be from 1 to 32"),
        ({"normalize": False}, ConfigError, "this model's own vectors have length one"),
        ({"truncate": "middle"}, ConfigError, "truncate must be one of right, left, error"),
    ],
)
def test_parameters_that_do_not_fit(api, parameters, error, message):
    with pytest.raises(error, match=message):
        encode(api, ["x"], **parameters)


@pytest.fixture
def held(api, monkeypatch):
    """The model of the api waits at this gate."""
    gate = threading.Event()
    encoder = api._cache.get("one").encoder
    embed = encoder.embed

    def slow_embed(inputs):
        assert gate.wait(10)
        return embed(inputs)

    object.__setattr__(encoder, "embed", slow_embed)
    yield gate
    gate.set()


def test_a_deadline(api, held):
    with pytest.raises(DeadlineExceededError, match=r"not answered within timeout_s=0.05"):
        encode(api, TEXTS, timeout_s=0.05)
    assert api._batcher.n_queued_tokens == 0


def test_too_much_is_refused(volume, held):
    api = EncodeAPI(volume, artifact="one", max_queue_tokens=50)
    gate = threading.Event()
    encoder = api._cache.get("one").encoder
    object.__setattr__(encoder, "embed", lambda inputs: gate.wait(10) and np.zeros((1, 32)))

    async def flood():
        asked = EncodeParameters()
        tasks = [asyncio.create_task(api.encode(["x"], asked)) for _ in range(60)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        return next(task.exception() for task in done)

    error = asyncio.run(flood())
    assert isinstance(error, OverloadedError)
    gate.set()
    api.close()


def test_tokenize(api, encoder):
    found = asyncio.run(api.tokenize(["The  apple"], TextParameters()))
    assert found["artifact"] == "one"
    assert found["digest"] == encoder.digest
    (tokens,) = found["tokens"]
    assert [token["id"] for token in tokens] == encoder.tokenizer.tokenize(["The  apple"])[0]
    assert (tokens[0]["is_special"], tokens[-2]["end"]) == (True, len("The  apple"))
    prompted = asyncio.run(api.tokenize(["x"], TextParameters(prompt_name="query")))
    assert len(prompted["tokens"][0]) > len(
        asyncio.run(api.tokenize(["x"], TextParameters()))["tokens"][0]
    )


@pytest.fixture
def two_runs(publish_run, tmp_path):
    """An api over the runs `a` and `b`, and the vectors of each by its digest."""
    runs = [publish_run(tmp_path, name, seed=seed) for seed, name in enumerate("ab", start=1)]
    encoders = [load_encoder(run.artifact_path) for run in runs]
    api = EncodeAPI(tmp_path, max_model_bytes=1)
    yield api, {encoder.digest: encoder.encode(TEXTS) for encoder in encoders}
    api.close()


def check_provenance(found, by_digest):
    np.testing.assert_allclose(found.vectors, by_digest[found.tags["digest"]], atol=1e-6)
    return found.tags["artifact"]


def test_an_alias_is_switched_loaded_and_rolled_back(two_runs):
    api, by_digest = two_runs
    for run in "ab":
        api.aliases.set({"name": "prod", "run": run})
        # Warm before the switch, and pinned, though the budget holds no model at all.
        assert api._cache.loaded_from(api._aliases.locate(api._aliases.get("prod").target))
        assert check_provenance(encode(api, TEXTS, artifact="prod"), by_digest) == run
    api.aliases.rollback({"name": "prod"})
    assert check_provenance(encode(api, TEXTS, artifact="prod"), by_digest) == "a"
    api.aliases.delete({"name": "prod"})
    with pytest.raises(ArtifactNotFound, match="no run and no artifact `prod`"):
        encode(api, TEXTS, artifact="prod")


def test_a_split_gives_a_client_always_the_same_run(two_runs):
    api, by_digest = two_runs
    api.aliases.set({"name": "prod", "run": "a", "split": {"run": "b", "weight": 0.5}})
    answers = {
        client: {
            check_provenance(encode(api, TEXTS, artifact="prod", client=client), by_digest)
            for _ in range(3)
        }
        for client in map(str, range(30))
    }
    assert all(len(runs) == 1 for runs in answers.values())
    assert set.union(*answers.values()) == {"a", "b"}


def test_a_shadow_is_asked_and_answers_nobody(two_runs):
    api, by_digest = two_runs
    api.aliases.set({"name": "prod", "run": "a", "shadow": "b"})

    async def ask():
        found = await api.encode(TEXTS, EncodeParameters(artifact="prod"))
        await asyncio.gather(*api._shadows)
        return found

    assert check_provenance(asyncio.run(ask()), by_digest) == "a"
    text = api.metrics()
    assert 'finetuner_encode_requests_total{artifact="a",outcome="ok",role="answer"} 1.0' in text
    assert 'finetuner_encode_requests_total{artifact="b",outcome="ok",role="shadow"} 1.0' in text


def test_an_alias_whose_run_is_gone(two_runs, tmp_path):
    api, _ = two_runs
    api.aliases.set({"name": "prod", "run": "a"})
    RunStore(tmp_path).delete(RunStore(tmp_path).get("a"))
    with pytest.raises(
        ArtifactNotFound, match="alias `prod` points to artifact .* which was deleted"
    ):
        encode(api, TEXTS, artifact="prod")


def test_aliases_are_among_the_models(two_runs):
    api, _ = two_runs
    api.aliases.set({"name": "prod", "run": "b"})
    rows = asyncio.run(api.models())["models"]
    assert [(row["id"], row["kind"], row["is_loaded"]) for row in rows] == [
        ("a", "run", False),
        ("b", "run", True),
        ("prod", "alias", True),
    ]


@pytest.mark.parametrize(
    ("parameters", "artifact", "error"),
    [
        ({"artifact": "two"}, "", "ArtifactNotFound"),
        ({"digest": "00"}, "one", "DigestMismatchError"),
        ({"prompt_name": "nope"}, "one", "ConfigError"),
        ({"truncate": "error", "prompt": "apple " * 500}, "one", "DataError"),
    ],
)
def test_a_failure_names_the_model_once_it_was_found(api, parameters, artifact, error):
    with pytest.raises(Exception, match="."):
        encode(api, ["x"], **parameters)
    counted = f'{{artifact="{artifact}",outcome="{error}",role="answer"}} 1.0'
    assert f"finetuner_encode_requests_total{counted}" in api.metrics()


def test_a_deadline_is_counted_with_its_model(api, held):
    with pytest.raises(DeadlineExceededError, match="not answered"):
        encode(api, TEXTS, timeout_s=0.05)
    assert 'artifact="one",outcome="DeadlineExceededError",role="answer"} 1.0' in api.metrics()


def test_a_shadow_that_fails_is_counted_with_its_model(two_runs):
    api, _ = two_runs
    api.aliases.set({"name": "prod", "run": "a", "shadow": "b"})
    encoder = api._cache.get("b").encoder
    object.__setattr__(encoder, "embed", lambda inputs: 1 / 0)

    async def ask():
        await api.encode(TEXTS, EncodeParameters(artifact="prod"))
        await asyncio.gather(*api._shadows)

    asyncio.run(ask())
    assert 'artifact="b",outcome="ZeroDivisionError",role="shadow"} 1.0' in api.metrics()

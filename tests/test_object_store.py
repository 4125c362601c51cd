"""Files by URL: in an S3, in memory, on a disk."""

import os

import pytest

from finetuner.errors import ConfigError, NotFoundError, UnavailableError
from finetuner.object_store import ObjectStore


@pytest.fixture(params=["s3", "memory", "file"])
def store(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    urls = {"s3": "s3://bucket/a/b", "memory": f"memory://{tmp_path.name}"}
    return ObjectStore(urls.get(request.param, f"file://{tmp_path}/a"))


def test_what_was_written_is_read(store):
    large = os.urandom(7 * 2**20)  # more than one part of an upload
    store.write("one.json", iter([b"{", b"}"]))
    store.write("deep/er/large", iter([large[: 2**20], large[2**20 :]]))
    assert (store.size_bytes("one.json"), store.size_bytes("deep/er/large")) == (2, len(large))
    assert store.read("one.json", max_bytes=10) == b"{}"
    assert store.read("one.json", max_bytes=1) == b"{"
    assert b"".join(store.chunks("deep/er/large")) == large
    store.write("one.json", iter([b"[1]"]))
    assert store.read("one.json", max_bytes=10) == b"[1]"


def test_what_is_not_there(store):
    assert store.size_bytes("none") is None
    store.remove("none")
    with pytest.raises(NotFoundError, match="no such object"):
        store.read("none", max_bytes=1)
    with pytest.raises(NotFoundError, match="no such object"):
        list(store.chunks("none"))


def test_what_was_removed_is_gone(store):
    store.write("one", iter([b"1"]))
    store.remove("one")
    assert store.size_bytes("one") is None


def test_an_error_of_the_source_is_not_the_stores(store):
    def broken():
        yield b"1" * 100
        raise OSError(5, "the disk")

    with pytest.raises(OSError, match="the disk"):
        store.write("one", broken())
    assert store.size_bytes("one") != 200


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_wrong_credentials_are_named_and_not_shown(s3, code):
    store = ObjectStore("s3://bucket/a")
    s3.refuses = code
    for ask in (
        lambda: store.size_bytes("x"),
        lambda: store.read("x", max_bytes=1),
        lambda: store.write("x", iter([b"1"])),
    ):
        with pytest.raises(UnavailableError, match="lets nobody in .* AWS_ACCESS_KEY_ID") as caught:
            ask()
        assert "the-secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(UnavailableError, match=r"`s3://other/a` has no such bucket"):
        ObjectStore("s3://other/a").write("x", iter([b"1"]))


def test_a_store_that_is_away_is_said_and_does_not_hang(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    with pytest.raises(UnavailableError, match=r"`s3://bucket/a` does not answer"):
        ObjectStore("s3://bucket/a").size_bytes("x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/a/folder", r"is a URL such as s3://bucket/prefix, got `/a/folder`"),
        ("nowhere://bucket/a", "`nowhere://` cannot be read"),
        ("s3://key:the-secret@bucket/a", "credentials stand in AWS_ACCESS_KEY_ID"),
        ("s3://bucket/a?secret=the-secret", "credentials stand in AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ObjectStore(url)
    assert "the-secret" not in str(caught.value)

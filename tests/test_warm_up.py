"""The models of aliases, loaded before anybody asks for them."""

import logging
import threading

import pytest

from finetuner.alias_store import AliasStore
from finetuner.encode_api import EncodeAPI
from finetuner.encoder_cache import EncoderCache
from finetuner.named_models import NamedModels
from finetuner.targets import Promotion
from finetuner.warm_up import WarmUp


@pytest.fixture
def volume(publish_run, tmp_path):
    """Finished runs with an alias each, set in this order; gives the artifacts by run."""

    def make(*names):
        store = AliasStore(tmp_path)
        paths = {name: publish_run(tmp_path, name).artifact_path for name in names}
        for name in names:
            store.set(f"alias-{name}", name, require=Promotion.ANY)
        return paths

    return make


@pytest.fixture
def warmed_up(tmp_path):
    """Let all be loaded; gives the cache and the runs in the order in which they were."""

    def warm_up(max_bytes=2**30):
        store, cache = AliasStore(tmp_path), EncoderCache(tmp_path, max_bytes=max_bytes)
        models, order = NamedModels(store, cache), []

        def warm(target):
            order.append(target.run)
            models.warm(target)

        WarmUp(store, cache, warm=warm, max_bytes=max_bytes, pause_s=0.0).wait(60)
        return cache, order

    return warm_up


def test_the_alias_that_was_set_last_is_loaded_first(volume, warmed_up):
    paths = volume("one", "two", "three")
    cache, order = warmed_up()
    assert order == ["default/three", "default/two", "default/one"]
    assert all(cache.loaded_from(path) is not None for path in paths.values())


def test_what_two_aliases_point_to_is_loaded_once_and_a_shadow_too(volume, warmed_up, tmp_path):
    volume("one", "two")
    AliasStore(tmp_path).set("both", "two", require=Promotion.ANY, shadow="one")
    assert warmed_up()[1] == ["default/two", "default/one"]


def test_what_does_not_fit_is_left_to_its_first_caller(volume, warmed_up, caplog):
    paths = volume("one", "two", "three")
    size_bytes = paths["one"].stat().st_size
    with caplog.at_level(logging.INFO, "finetuner.warm_up"):
        # Two copies of one model fit, four do not; each of these takes one.
        cache, order = warmed_up(max_bytes=int(3.5 * size_bytes))
    assert order == ["default/three", "default/two"]
    assert sum(cache.sizes().values()) <= 3.5 * size_bytes
    assert "alias `alias-one` is loaded when it is asked: there is no room now" in caplog.text


def test_one_that_cannot_be_loaded_keeps_no_other_from_it(volume, warmed_up, caplog):
    paths = volume("one", "two")
    paths["two"].write_bytes(b"no zip")
    cache, order = warmed_up()
    assert order == ["default/two", "default/one"]
    assert cache.loaded_from(paths["one"]) is not None
    assert "alias `alias-two` cannot be loaded" in caplog.text


def test_damaged_aliases_are_only_logged(volume, warmed_up, tmp_path, caplog):
    volume("one")
    (tmp_path / "aliases" / "alias-one.json").write_bytes(b"{")
    assert warmed_up()[1] == []
    assert "cannot read the aliases" in caplog.text


def test_it_ends_behind_the_model_that_is_being_loaded(volume, tmp_path):
    volume("one", "two")
    store, cache = AliasStore(tmp_path), EncoderCache(tmp_path)
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def warm(target):
        begun.set()
        assert go_on.wait(30)
        loaded.append(target.run)

    warm_up = WarmUp(store, cache, warm=warm, max_bytes=2**30, pause_s=0.0)
    assert begun.wait(30)
    threading.Timer(0.2, go_on.set).start()
    warm_up.close()
    assert loaded == ["default/two"]


def test_an_encoder_loads_its_aliases_by_itself_and_is_ready_meanwhile(
    volume, tmp_path, monkeypatch
):
    volume("one")
    go_on, loaded = threading.Event(), threading.Event()
    warm = NamedModels.warm

    def slow(self, target):
        assert go_on.wait(30)
        warm(self, target)
        loaded.set()

    monkeypatch.setattr(NamedModels, "warm", slow)
    api = EncodeAPI(tmp_path)
    try:
        assert api.ready() == {"ready": True}
        go_on.set()
        assert loaded.wait(30)
    finally:
        api.close()

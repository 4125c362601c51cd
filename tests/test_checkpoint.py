"""Checkpoints on disk: the newest whole one counts, and only tensors and plain values are read."""

import hashlib
import json
import logging

import pytest
import torch

from finetuner.checkpoint import CheckpointStore


class _Foreign:
    """What only a pickle could bring back."""


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def _state(number):
    return {
        "weights": {"layer": torch.full((3, 2), float(number)), "n": torch.tensor(number)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "best": float("nan"),
        "examples": {"before": {"model": [{"query": "ä", "results": []}]}},
        "rivals": None,
        "is_over": False,
        "number": number,
    }


def _save(store, *steps):
    for step in steps:
        store.save(_state(step), step=step)


def _files(store):
    return sorted(path.name for path in store.folder.iterdir())


def _path(store, step, suffix="pt"):
    return store.folder / f"step-{step:09}.{suffix}"


def test_what_was_saved_comes_back(store):
    _save(store, 7)
    found, expected = store.newest(), _state(7)
    assert found["best"] != found["best"]
    for key in ("optimizer", "examples", "rivals", "is_over", "number"):
        assert found[key] == expected[key]
    for name, value in expected["weights"].items():
        assert torch.equal(found["weights"][name], value)


def test_nothing_saved_is_none(store):
    assert store.newest() is None
    store.clear()
    assert not store.folder.exists()


def test_two_are_kept_and_the_newest_counts(store):
    _save(store, 8, 9, 10, 100)
    assert store.newest()["number"] == 100
    assert _files(store) == [
        *("step-000000010.json", "step-000000010.pt"),
        *("step-000000100.json", "step-000000100.pt"),
    ]


def test_one_step_saved_twice_is_the_later_state(store):
    _save(store, 1)
    store.save(_state(2), step=1)
    assert store.newest()["number"] == 2


def _truncate(store):
    path = _path(store, 2)
    path.write_bytes(path.read_bytes()[:-1])


def _empty(store):
    _path(store, 2).write_bytes(b"")


def _flip(store):
    path = _path(store, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lose_digest(store):
    _path(store, 2, "json").unlink()


def _garble_digest(store):
    _path(store, 2, "json").write_bytes(b'{"sha256": "')


def _change_form_of_digest(store):
    _path(store, 2, "json").write_bytes(b"[]")


def _replace_by_digest_of_another(store):
    """As a process leaves it that is killed between the two files."""
    torch.save(_state(3), _path(store, 2))


def _with_digest(store, content):
    torch.save(content, _path(store, 2))
    digest = hashlib.sha256(_path(store, 2).read_bytes()).hexdigest()
    _path(store, 2, "json").write_text(json.dumps({"sha256": digest}))


def _pickle_an_object(store):
    _with_digest(store, {"number": 2, "object": _Foreign()})


def _whole_but_no_checkpoint(store):
    _path(store, 2).write_bytes(b"text")
    digest = hashlib.sha256(b"text").hexdigest()
    _path(store, 2, "json").write_text(json.dumps({"sha256": digest}))


_DAMAGES = (
    *(_truncate, _empty, _flip, _lose_digest, _garble_digest, _change_form_of_digest),
    *(_replace_by_digest_of_another, _pickle_an_object, _whole_but_no_checkpoint),
)


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_one_is_passed_over(store, damage, caplog):
    _save(store, 1, 2)
    damage(store)
    with caplog.at_level(logging.WARNING, "finetuner"):
        assert store.newest()["number"] == 1
    assert "Checkpoint step-000000002.pt is damaged; using the one before it" in caplog.text


def test_all_damaged_is_none(store, caplog):
    _save(store, 1, 2)
    _truncate(store)
    _path(store, 1).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "finetuner"):
        assert store.newest() is None
    assert caplog.text.count("is damaged") == 2


def test_what_is_in_memory_can_change_after_it_was_saved(store):
    state = _state(1)
    store.save(state, step=1)
    state["weights"]["layer"].zero_()
    assert torch.equal(store.newest()["weights"]["layer"], torch.ones(3, 2))


def test_a_write_that_fails_leaves_the_one_before(store, monkeypatch):
    _save(store, 1)

    def broken(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        store.save(_state(2), step=2)
    assert store.newest()["number"] == 1
    assert _files(store) == ["step-000000001.json", "step-000000001.pt"]


def test_half_written_files_of_a_killed_process_are_removed(store):
    """SIGKILL leaves the temporary file, as large as a checkpoint, that replacing() writes to."""
    _save(store, 1)
    (store.folder / ".step-000000002.pt.abc").write_bytes(b"half")
    assert store.newest()["number"] == 1
    assert _files(store) == ["step-000000001.json", "step-000000001.pt"]
    (store.folder / ".step-000000002.pt.abc").write_bytes(b"half")
    store.clear()
    assert store.newest() is None
    assert not store.folder.exists()


def test_a_damaged_newer_one_does_not_push_out_whole_ones(store):
    """Going on from step 2 beside a damaged step 9, steps 3 and 4 are the two that are kept."""
    _save(store, 2, 9)
    _path(store, 9).write_bytes(b"x")
    assert store.newest()["number"] == 2
    _save(store, 3, 4)
    _path(store, 4).write_bytes(b"x")
    assert store.newest()["number"] == 3

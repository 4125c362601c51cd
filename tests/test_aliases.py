import hashlib
import random
import subprocess
import sys

import pytest

from finetuner.aliases import Alias, Split, Target, choose
from finetuner.errors import ConfigError
from finetuner.schema import read

ONE, TWO, THREE = (Target(f"default/{name}", name) for name in ("one", "two", "three"))
KEYS = [f"user-{i}" for i in range(10_000)]


def split(weight, name="prod"):
    return Alias(name, ONE, Split(TWO, weight))


def seconds(alias, keys):
    """Those that the second target answers."""
    return {key for key in keys if choose(alias, key) == TWO}


@pytest.mark.parametrize("key", [None, "", "user"])
@pytest.mark.parametrize(
    ("alias", "expected"),
    [(Alias("prod", ONE), ONE), (split(0.0), ONE), (split(1.0), TWO)],
)
def test_all_or_nothing(alias, key, expected):
    assert {choose(alias, key) for _ in range(100)} == {expected}


@pytest.mark.parametrize("weight", [0.05, 0.5, 0.9])
def test_share_of_keys_and_of_requests_without_one(weight):
    # Within five standard deviations of the binomial distribution of 10 000.
    width = 5 * (weight * (1 - weight) / len(KEYS)) ** 0.5
    assert len(seconds(split(weight), KEYS)) / len(KEYS) == pytest.approx(weight, abs=width)
    random.seed(1)
    n_drawn = sum(choose(split(weight), None) == TWO for _ in KEYS)
    assert n_drawn / len(KEYS) == pytest.approx(weight, abs=width)


def test_a_key_stays_where_it_is():
    """In this process, in another with another seed of `hash`, and when the share grows."""
    few = seconds(split(0.1), KEYS[:200])
    assert few == seconds(split(0.1), KEYS[:200])
    assert few < seconds(split(0.3), KEYS[:200])
    code = (
        "from finetuner.aliases import *\n"
        "alias = Alias('prod', Target('a', ''), Split(Target('b', ''), 0.1))\n"
        "print(*(k for k in (f'user-{i}' for i in range(200)) if choose(alias, k).run == 'b'))\n"
    )
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"PYTHONHASHSEED": "5", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(other.stdout.split()) == few


def test_place_of_a_key_is_that_of_its_hash():
    digest = hashlib.sha256(b"prod\0user-7").hexdigest()
    place = int(digest[:12], 16) / 16**12
    assert choose(split(place), "user-7") == ONE
    assert choose(split(place + 1e-9), "user-7") == TWO


def test_two_aliases_draw_apart():
    both = seconds(split(0.5), KEYS) & seconds(split(0.5, "beta"), KEYS)
    assert len(both) / len(KEYS) == pytest.approx(0.25, abs=0.03)


def test_key_that_is_no_unicode():
    assert choose(split(0.5), "\ud800") in (ONE, TWO)


@pytest.mark.parametrize("weight", [-0.001, 1.001, float("nan")])
def test_weight_out_of_range(weight):
    with pytest.raises(ConfigError, match=f"weight of a split must be 0 to 1, got {weight}"):
        Split(TWO, weight)


@pytest.mark.parametrize(
    ("alias", "shares", "targets"),
    [
        (Alias("a", ONE), ((ONE, 1.0),), (ONE,)),
        (Alias("a", ONE, shadow=THREE), ((ONE, 1.0),), (ONE, THREE)),
        (Alias("a", ONE, Split(TWO, 0.9), THREE), ((ONE, 0.1), (TWO, 0.9)), (ONE, TWO, THREE)),
    ],
)
def test_shares_and_targets(alias, shares, targets):
    assert (alias.shares, alias.targets) == (shares, targets)


def test_past_is_bounded():
    alias = Alias("a", ONE, history=(THREE, *[TWO] * 18))
    assert alias.past == (THREE, *[TWO] * 18, ONE)
    longer = Alias("a", ONE, history=alias.past)
    assert longer.past == (*[TWO] * 18, ONE, ONE)


def test_alias_of_an_unknown_form_is_refused():
    data = {"name": "a", "target": {"run": "default/one", "artifact_id": "1"}}
    assert read(Alias, data, "a.json") == Alias("a", Target("default/one", "1"))
    with pytest.raises(ConfigError, match="unknown field `color`"):
        read(Alias, {**data, "color": 1}, "a.json")

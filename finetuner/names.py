"""Names of runs, experiments and stored data: what is allowed, and a fresh one when none is given."""

from __future__ import annotations

import re
import secrets

from finetuner.errors import ConfigError

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}"
_NAME = re.compile(_SEGMENT)
_DATA_NAME = re.compile(rf"{_SEGMENT}(/{_SEGMENT})?")

_ADJECTIVES = (
    "able brave bright calm clever crisp daring deft eager earnest fair fleet gentle glad golden "
    "happy honest humble jolly keen kind lively lucid merry mild modest nimble noble patient plain "
    "polite proud quick quiet ready serene sharp silent sincere smart steady sturdy subtle sunny "
    "swift tidy trusty vivid warm wise witty"
).split()
_NOUNS = (
    "albatross badger beaver bison bittern buzzard curlew dolphin dormouse dunlin eider falcon "
    "finch gannet goshawk hare hedgehog heron ibex jackdaw kestrel kingfisher lapwing lark linnet "
    "lynx marten merlin mole nightjar nuthatch osprey otter ouzel owl petrel pipit plover puffin "
    "raven redstart robin siskin skylark snipe stoat stork swallow swift tern turnstone wagtail "
    "weasel wren"
).split()


def check_name(name: str, kind: str) -> str:
    """Return the name of a run or an experiment unchanged, or refuse it.

    :param name: 1 to 128 letters, digits, ``.``, ``_``, ``-``; the first a letter, digit or ``_``.
    :param kind: ``"run name"`` or ``"experiment name"``, for the message.
    :raises ConfigError: When the name has any other form; such a name could leave its folder.
    """
    return _check(_NAME, name, kind, "")


def check_data_name(name: str) -> str:
    """Return the name of stored data unchanged, or refuse it.

    :param name: As :func:`check_name`, with at most one slash: ``quora_train.da``, ``me/train``.
    :raises ConfigError: When the name has any other form.
    """
    return _check(_DATA_NAME, name, "data name", ", at most one `/`")


def _check(pattern: re.Pattern[str], name: str, kind: str, more: str) -> str:
    if not pattern.fullmatch(name):
        shown = name.encode("unicode_escape").decode()[:60]
        raise ConfigError(
            f"the {kind} `{shown}` is not allowed; use 1 to 128 letters, digits, `.`, `_`, `-`{more}, "
            "beginning with a letter, a digit or `_`"
        )
    return name


def random_run_name() -> str:
    """Return a name such as ``patient-heron-3f9a``; the last part keeps two runs apart."""
    adjective, noun = secrets.choice(_ADJECTIVES), secrets.choice(_NOUNS)
    return f"{adjective}-{noun}-{secrets.token_hex(2)}"

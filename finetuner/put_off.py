"""Modules that a library loads and that texts do not need: loaded when something of them is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def put_off(module: str, *functions: str) -> Iterator[None]:
    """Let a library that is imported inside not load a module of a package that loads its own when asked.

    What imports ``a.b`` finds an empty module in its place, and ``a`` gives the true one at the first use of
    ``a.b``, as scipy does. Nothing of it is left behind.

    :param module: Its dotted name.
    :param functions: Those of its functions that are imported by name; each loads it when it is called.
    """
    if module in sys.modules:
        yield
        return
    stand_in = ModuleType(module)
    for name in functions:
        setattr(stand_in, name, _loading(module, name))
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        del sys.modules[module]


def _loading(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call

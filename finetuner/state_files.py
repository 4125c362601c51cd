"""Where a run's states lie: a file for each step that it has made, by number; the last one is where it is."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetuner.files import file_version, make_folder, read_json, write_new_json
from finetuner.schema import read
from finetuner.states import State, Status


def states_version(folder: Path) -> tuple[int, int]:
    """Return what changes when a run makes a step, or its folder becomes another run's.

    :param folder: The run's.
    :raises FileNotFoundError: When the run was deleted.
    """
    # Asked for each run of a list: to join paths or make objects takes longer than to look at the disk.
    return file_version(f"{folder}/states")


@dataclass(frozen=True)
class StateFiles:
    """The states of one run.

    :param folder: The run's.
    """

    folder: Path

    def newest(self) -> State:
        """Return the last state.

        :raises FileNotFoundError: When the run was deleted, or is just being deleted.
        """
        return self._read(self._newest_number())

    def all(self) -> list[State]:
        """Return all states, the last one last.

        :raises FileNotFoundError: When the run was deleted, or is just being deleted.
        """
        return [self._read(number) for number in range(self._newest_number() + 1)]

    def add(self, state: State) -> None:
        """Write a state under its number.

        :raises FileExistsError: When there is one of that number.
        :raises FileNotFoundError: When the run was deleted.
        """
        write_new_json(self.folder / "states" / f"{state.number:06}.json", _content(state))

    def _read(self, number: int) -> State:
        """Return the state of a number; one that the disk has lost has failed."""
        name = f"states/{number:06}.json"
        try:
            return replace(read(State, read_json(self.folder / name), name), number=number)
        except ValueError as exc:
            return State(Status.FAILED, f"The file {name} is damaged: {exc}", number=number)

    def _newest_number(self) -> int:
        return max(self._numbers() or self._take_over_old_form())

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self.folder / "states")
        except FileNotFoundError:
            return []
        return [int(name[:-5]) for name in names if name[0] != "."]

    def _take_over_old_form(self) -> list[int]:
        """Make the first state of a run of version 0.1.0, which had one file, replaced at each step.

        :raises FileNotFoundError: When it has none of that either.
        """
        old = read(State, read_json(self.folder / "state.json"), "state.json")
        with contextlib.suppress(FileExistsError):
            write_new_json(make_folder(self.folder / "states") / "000000.json", _content(old))
        return [0]


def _content(state: State) -> dict[str, Any]:
    """Return what is written of a state: its number is its name."""
    content = asdict(state)
    del content["number"]
    return content

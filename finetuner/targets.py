"""From a run to what an alias may point to, and from there to the artifact."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path

from finetuner.aliases import Target
from finetuner.artifact import read_manifest
from finetuner.errors import (
    ArtifactNotFound,
    PromotionRefusedError,
    RunFailedError,
    RunInProgressError,
    RunNotFoundError,
)
from finetuner.file_cache import FileCache
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.verdict import Outcome


class Promotion(StrEnum):
    """What an alias asks of a finished run.

    ``improved``: one of its evaluations, at least, found the model better than the one it began with,
    and none found it worse; a run without evaluation has not shown that. ``any``: nothing.
    """

    IMPROVED = "improved"
    ANY = "any"


class Targets:
    """The runs of one volume, as aliases see them.

    :param workspace: The volume.
    """

    def __init__(self, workspace: Path) -> None:
        self._runs = RunStore(workspace)
        self._artifact_ids = FileCache(lambda path: _artifact_id(Run(path.parent)))

    def resolve(self, artifact: str, require: Promotion, *, alias: str) -> Target:
        """Return the target that a run is.

        :param artifact: A finished run: its name, ``experiment/run`` or its artifact id.
        :param require: What it must have shown.
        :param alias: The name that shall point to it, for the messages.
        :raises PromotionRefusedError: When it does not meet the rule; the message gives its verdicts.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        :raises CorruptedArtifact: When its verdicts cannot be read.
        """
        try:
            run = Run(self._runs.find_artifact(artifact).parent)
        except (RunInProgressError, RunFailedError) as exc:
            raise type(exc)(
                f"alias `{alias}` needs a finished run, not `{artifact}`: {exc}"
            ) from exc
        # The id first: that of a run made anew meanwhile would let in what has not been judged.
        target = Target(f"{run.experiment_name}/{run.name}", _artifact_id(run))
        if require is Promotion.IMPROVED:
            _check_improved(run, target, alias)
        return target

    def locate(self, target: Target, *, alias: str | None = None) -> Path:
        """Return the artifact of a target; quick enough to ask at each request.

        :param target: What an alias points to.
        :param alias: Its name, for the message.
        :raises ArtifactNotFound: When the run was deleted, also when one of its name was made since.
        """
        experiment, _, name = target.run.rpartition("/")
        with contextlib.suppress(RunNotFoundError, FileNotFoundError):
            run = self._runs.get(name, experiment)
            found = self._artifact_ids.get(run.folder / "spec.json")
            if found == target.artifact_id and run.artifact_path.is_file():
                return run.artifact_path
        points = "" if alias is None else f"alias `{alias}` points to "
        raise ArtifactNotFound(
            f"{points}artifact `{target.artifact_id}` of run `{target.run}`, which was deleted; set the "
            "alias to another run, or roll it back"
        )

    def is_there(self, target: Target) -> bool:
        """Whether a target can be served."""
        try:
            self.locate(target)
        except ArtifactNotFound:
            return False
        return True


def _artifact_id(run: Run) -> str:
    return str(run.spec()["artifact_id"])


def _check_improved(run: Run, target: Target, alias: str) -> None:
    verdicts = read_manifest(run.artifact_path).verdicts
    outcomes = set(verdicts.values())
    if Outcome.IMPROVED in outcomes and Outcome.REGRESSED not in outcomes:
        return
    shown = ", ".join(f"{caption}: {outcome}" for caption, outcome in sorted(verdicts.items()))
    raise PromotionRefusedError(
        f"run `{target.run}` did not measure better ({shown or 'it was not evaluated'}): alias `{alias}` "
        "takes one that improved on one evaluation at least and got worse on none; to serve it all the "
        "same, use force=True (the command's --force)"
    )

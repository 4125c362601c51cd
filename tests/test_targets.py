import pytest

from finetuner.aliases import Target
from finetuner.config import RunConfig
from finetuner.errors import (
    ArtifactNotFound,
    CorruptedArtifact,
    PromotionRefusedError,
    RunFailedError,
    RunInProgressError,
)
from finetuner.run_store import RunStore
from finetuner.states import Status
from finetuner.targets import Promotion, Targets

IMPROVED, UNCHANGED, REGRESSED = "improved", "unchanged", "REGRESSED"


@pytest.fixture
def targets(tmp_path):
    return Targets(tmp_path)


def resolve(targets, artifact="one", require=Promotion.IMPROVED):
    return targets.resolve(artifact, require, alias="prod")


@pytest.mark.parametrize(
    "outcomes",
    [(IMPROVED,), (IMPROVED, IMPROVED), (IMPROVED, UNCHANGED), (UNCHANGED, IMPROVED)],
)
def test_run_that_improved_is_taken(targets, finish_run, outcomes):
    run = finish_run("one", *outcomes)
    assert resolve(targets) == Target("default/one", run.spec()["artifact_id"])


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        ((), "run `default/one` did not measure better .it was not evaluated."),
        ((UNCHANGED,), "better .set 0: unchanged."),
        ((REGRESSED,), "better .set 0: REGRESSED."),
        ((IMPROVED, REGRESSED), "better .set 0: improved, set 1: REGRESSED."),
        ((REGRESSED, UNCHANGED, IMPROVED), "set 0: REGRESSED, set 1: unchanged, set 2: improved"),
    ],
)
def test_run_that_did_not_improve_is_taken_by_force_alone(targets, finish_run, outcomes, shown):
    finish_run("one", *outcomes)
    with pytest.raises(PromotionRefusedError, match=f"{shown}.*: alias .* use force=True"):
        resolve(targets)
    assert resolve(targets, require=Promotion.ANY).run == "default/one"


def test_run_is_named_in_three_forms(targets, finish_run):
    run = finish_run("one", IMPROVED, experiment="other")
    artifact_id = run.spec()["artifact_id"]
    for name in ("other/one", artifact_id):
        assert resolve(targets, name) == Target("other/one", artifact_id)
    with pytest.raises(ArtifactNotFound, match="no run and no artifact `one`"):
        resolve(targets)


@pytest.mark.parametrize("require", Promotion)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.CREATED, RunInProgressError),
        (Status.STARTED, RunInProgressError),
        (Status.FAILED, RunFailedError),
    ],
)
def test_run_that_is_not_finished_is_not_taken(targets, tmp_path, come_to, status, error, require):
    run = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})
    come_to(run, status)
    with pytest.raises(error, match="alias `prod` needs a finished run, not `one`: The run "):
        resolve(targets, require=require)


def test_artifact_that_cannot_be_read(targets, finish_run):
    finish_run("one", IMPROVED).artifact_path.write_bytes(b"no zip")
    with pytest.raises(CorruptedArtifact, match=r"has no readable manifest\.json"):
        resolve(targets)


def test_target_leads_to_its_artifact(targets, finish_run):
    run = finish_run("one", IMPROVED)
    target = resolve(targets)
    assert targets.locate(target) == run.artifact_path
    assert targets.is_there(target)


def test_run_of_the_same_name_is_another(targets, finish_run, tmp_path):
    run = finish_run("one", IMPROVED)
    target = resolve(targets)
    assert targets.locate(target) == run.artifact_path
    RunStore(tmp_path).delete(run)
    message = (
        f"^alias `prod` points to artifact `{target.artifact_id}` of run `default/one`, which was"
    )
    with pytest.raises(ArtifactNotFound, match=message):
        targets.locate(target, alias="prod")
    finish_run("one", IMPROVED)
    with pytest.raises(ArtifactNotFound, match=message):
        targets.locate(target, alias="prod")
    assert not targets.is_there(target)
    again = resolve(targets)
    assert targets.is_there(again)
    assert again.artifact_id != target.artifact_id


def test_run_without_its_artifact(targets, finish_run):
    run = finish_run("one", IMPROVED)
    target = resolve(targets)
    run.artifact_path.unlink()
    with pytest.raises(ArtifactNotFound, match="^artifact `.*` of run `default/one`, which was"):
        targets.locate(target)

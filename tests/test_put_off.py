"""A module that a library would load too early: in its place for a while, and gone afterwards."""

import statistics
import sys
from types import ModuleType

import pytest

from finetuner.put_off import put_off


@pytest.fixture
def not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "statistics")


@pytest.mark.usefixtures("not_loaded")
def test_what_is_imported_inside_is_empty_and_its_functions_load_it():
    with put_off("statistics", "median"):
        import statistics as empty
        from statistics import median

        assert isinstance(empty, ModuleType)
        assert not hasattr(empty, "mean")
    assert "statistics" not in sys.modules
    assert median([3, 1, 2]) == 2
    assert sys.modules["statistics"].mean([1, 3]) == 2


@pytest.mark.usefixtures("not_loaded")
def test_nothing_is_left_behind_by_an_import_that_fails():
    with pytest.raises(ImportError, match="cannot import name 'mean'"), put_off("statistics"):
        from statistics import mean  # noqa: F401
    assert "statistics" not in sys.modules


def test_what_is_loaded_stays():
    with put_off("statistics"):
        assert sys.modules["statistics"] is statistics
    assert sys.modules["statistics"] is statistics


def test_what_was_put_off_by_losses_and_models_is_the_true_one():
    import scipy
    from pytorch_metric_learning.utils import common_functions
    from transformers.loss.loss_for_object_detection import linear_sum_assignment

    import finetuner.losses
    import finetuner.models

    assert finetuner.losses.LOSSES.keys() | finetuner.models.POOLERS.keys()
    assert common_functions.scipy.stats.rankdata([30, 10, 20]).tolist() == [3, 1, 2]
    assert scipy.optimize.linear_sum_assignment is not None
    rows, columns = linear_sum_assignment([[5, 1], [1, 5]])
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])

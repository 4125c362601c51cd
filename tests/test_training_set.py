"""How sets put texts into batches."""

import numpy as np
import pytest

from finetuner.config import RunConfig
from finetuner.data import TrainingData
from finetuner.models import load_model
from finetuner.training_set import create_set
from finetuner.validation_split import split_data


@pytest.mark.parametrize("by_label", [True, False])
def test_both_sides_make_batches_of_all_their_texts(tiny_model_folder, tiny_labelled, by_label):
    classes = np.array([int(label) for label in tiny_labelled.labels])
    data = TrainingData(list(tiny_labelled.texts), classes, 0, 0)
    tokenizer = load_model(tiny_model_folder).tokenizer
    for part in split_data(data, 0.3, by_label=by_label, seed=0):
        made = create_set(part, tokenizer, config=RunConfig(model="tiny", batch_size=8))
        batches = made.epoch(0)
        places = np.concatenate([batch.positions for batch in batches])
        assert sorted(places.tolist()) == list(range(len(part.texts)))
        for batch in batches:
            assert batch.targets.classes.tolist() == part.classes[batch.positions].tolist()

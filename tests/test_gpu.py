"""What only a GPU can show; skipped where there is none."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import finetuner
from finetuner.artifact import ONNX_GRAPH, Manifest, pack
from finetuner.backends import Backend, EncoderPrecision
from finetuner.checkpoint import CheckpointStore
from finetuner.config import Device, Precision, RunConfig
from finetuner.data import prepare_training
from finetuner.encoder import Encoder, load_encoder, torch_encoder
from finetuner.exits import Exit
from finetuner.models import load_model, save_model
from finetuner.states import Status
from finetuner.submission import submit
from finetuner.trainer import TrainingHooks
from finetuner.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
_TEXTS = [f"{'we like the river of today ' * (i % 9)}number {i}" for i in range(60)] + ["", "a"]


def _config(**options):
    defaults = {
        "model": "tiny",
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "precision": Precision.FP32,
        "checkpoint_interval_s": 0.0,
        "loss": "SupConLoss",
    }
    return RunConfig(**{**defaults, **options})


def _train(folder, texts, config, *, device="cuda", store=None, stop_after=None):
    """Train; return the loss of each batch, and the weights."""
    losses = []
    loaded = load_model(Path(folder))
    hooks = TrainingHooks(
        on_step=lambda progress: losses.append(progress.batch_loss),
        on_epoch_end=lambda _end: None,
        is_stopping=lambda: len(losses) == stop_after,
        state=lambda: {"losses": list(losses)},
        restore=lambda state: losses.extend(state["losses"]),
    )
    train(
        loaded,
        prepare_training(texts),
        config=config,
        device=torch.device(device),
        hooks=hooks,
        checkpoints=store,
        resume_from=store.newest() if store else None,
    )
    return losses, {name: weight.cpu() for name, weight in loaded.model.state_dict().items()}


def test_a_gpu_trains_as_a_cpu_does(model_without_dropout, tiny_labelled):
    on_cpu, _ = _train(model_without_dropout, tiny_labelled, _config(), device="cpu")
    on_gpu, _ = _train(model_without_dropout, tiny_labelled, _config())
    assert len(on_cpu) == 6
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)  # TF32 has ten bits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_goes_on_where_it_was(precision, tiny_model_folder, tiny_labelled, tmp_path):
    """With dropout, so that the GPU's random numbers must go on too, and in fp16 the scale."""
    config = _config(precision=Precision(precision))
    straight, weights = _train(tiny_model_folder, tiny_labelled, config)
    store = CheckpointStore(tmp_path)
    begun, _ = _train(tiny_model_folder, tiny_labelled, config, store=store, stop_after=2)
    assert len(begun) == 2
    resumed, resumed_weights = _train(tiny_model_folder, tiny_labelled, config, store=store)
    assert resumed == pytest.approx(straight, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(resumed_weights[name], weight, atol=1e-4, rtol=1e-3)


def test_a_cached_gradient_is_that_of_the_whole_batch(model_without_dropout, tiny_labelled):
    whole, _ = _train(model_without_dropout, tiny_labelled, _config())
    parts, _ = _train(model_without_dropout, tiny_labelled, _config(gradient_cache_size=4))
    assert parts == pytest.approx(whole, rel=1e-2)


@pytest.fixture(scope="module")
def artifact(tiny_model_folder, tmp_path_factory):
    """The tiny model with its ONNX graph, as an artifact."""
    from finetuner.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("artifact") / "model"
    (folder / "onnx").mkdir(parents=True)
    loaded = load_model(tiny_model_folder)
    save_model(loaded, folder)
    export_onnx(folder, folder / ONNX_GRAPH)
    manifest = Manifest(
        run_name="tiny",
        model="tiny",
        dim=loaded.model.dim,
        pooler="mean",
        normalize=True,
        max_length=loaded.max_length,
        input_names=loaded.model.input_names,
        metrics={},
        has_onnx=True,
        created_at="",
    )
    path = folder.parent / "tiny.zip"
    pack(folder, path, manifest=manifest)
    return path


@pytest.fixture(scope="module")
def reference(tiny_model_folder):
    return torch_encoder(load_model(tiny_model_folder)).encode(_TEXTS)


def _load(artifact, backend, precision) -> Encoder:
    encoder = load_encoder(artifact, backend=backend, device=Device.CUDA, precision=precision)
    assert (encoder.device, encoder.backend) == ("cuda", backend)
    return encoder


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_without_padding_is_near_to_fp32(precision, artifact, reference):
    encoder = _load(artifact, Backend.TORCH, EncoderPrecision(precision))
    vectors = encoder.encode(_TEXTS)
    assert vectors.dtype == np.float32
    assert (vectors * reference).sum(axis=1).min() >= 0.9999
    alone = np.concatenate([encoder.encode([text]) for text in _TEXTS])
    assert (vectors * alone).sum(axis=1).min() >= 0.9999


def test_fp32_is_that_of_the_cpu(artifact, reference):
    encoder = _load(artifact, Backend.TORCH, EncoderPrecision.FP32)
    np.testing.assert_allclose(encoder.encode(_TEXTS), reference, atol=1e-5)


def test_auto_is_bf16_by_torch(artifact):
    encoder = load_encoder(artifact, device=Device.CUDA, precision=EncoderPrecision.AUTO)
    assert (encoder.backend, encoder.precision) == (Backend.TORCH, EncoderPrecision.BF16)


def test_onnx_runtime_on_the_gpu_gives_the_cpus_vectors(artifact, reference):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA here")
    encoder = _load(artifact, Backend.ONNX, EncoderPrecision.FP32)
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(encoder.encode, [_TEXTS] * 8):
            np.testing.assert_allclose(vectors, reference, atol=1e-5)


def test_a_search_on_the_gpu_finds_what_one_on_the_cpu_finds():
    generator = np.random.default_rng(0)
    index, queries = (generator.standard_normal((n, 16), dtype=np.float32) for n in (5000, 50))
    labels, query_labels = generator.integers(0, 30, 5000), generator.integers(0, 30, 50)
    on_cpu, on_gpu = (
        finetuner.evaluate_vectors(
            queries, index, query_labels=query_labels, index_labels=labels, device=device
        )
        for device in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(on_gpu.places, on_cpu.places)
    np.testing.assert_allclose(on_gpu.distances, on_cpu.distances, atol=1e-12)
    assert on_gpu.metrics == on_cpu.metrics


@pytest.fixture
def submitted(tmp_path, tiny_model_folder, tiny_labelled):
    """Submit a run on the GPU."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    rows = list(tiny_labelled.rows())
    options = {"query_data": rows, "limit": 3}
    request = {
        "model": "tiny",
        "train_data": rows,
        "run_name": "on-gpu",
        "loss": "SupConLoss",
        "device": "cuda",
        "to_onnx": True,
        "callbacks": [{"name": "EvaluationCallback", "options": options}],
    }
    return lambda **changes: submit({**request, **changes}, tmp_path)


def test_a_whole_run(submitted, work):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    run = submitted()
    assert work(run) == Exit.FINISHED
    assert run.state().status is Status.FINISHED
    assert torch.cuda.max_memory_allocated() > before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        vectors = finetuner.get_model(str(run.artifact_path)).encode(["the apple"])
    on_gpu = finetuner.get_model(str(run.artifact_path)).encode(["the apple"])
    np.testing.assert_allclose(on_gpu, vectors, atol=1e-5)


def test_too_little_memory_is_said_in_words(submitted):
    """In a process of its own, which has none of this one's memory to use again."""
    run = submitted()
    source = (
        "import sys, torch\n"
        "total = torch.cuda.get_device_properties(0).total_memory\n"
        "torch.cuda.set_per_process_memory_fraction(2**20 / total)\n"
        "from finetuner import worker\n"
        "sys.exit(worker.main(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", source, str(run.folder)]
    assert subprocess.run(command, check=False).returncode == Exit.FAILED
    assert run.state().details.startswith("Out of memory: ")

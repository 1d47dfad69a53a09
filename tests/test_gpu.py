"""On a GPU: the same losses, gradients, ranks and answers as on the CPU, its slow and obvious twin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from interrupting import forget_accelerator, stop
from tiny import make_model, model_settings, open_prepared, pixels, train_settings, write_prepared
from tiny_model import write_tiny_model
from torch import Tensor, nn

from diptych.config import Augmentation, Objectives
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.dual_encoder import DualEncoder
from diptych.registry.packaged_model import PackagedModel
from diptych.retrieval.embedding import Embedded, embed_means, embed_querybank, embed_split
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import ranks_from_embeddings
from diptych.retrieval.reranking import Directed, Weights, candidate_logits, reranked_ranks
from diptych.training.batches import Batch, BatchPlan
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.flops import matrix_product_rate
from diptych.training.gradients import backward_in_chunks
from diptych.training.loop import Setup, Trainer
from diptych.training.step import TrainingStep
from diptych.training.views import ImageViews

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EAGER = {"compile": "never"}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def expectable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In full, so that the CPU's numbers can be expected; and what accelerate and torch.compile remember is dropped."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    forget_accelerator()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p"))


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    """A model on the CPU whose embeddings lie apart, so that the last bits of a score change no rank."""
    made = trainer(prepared, tmp_path_factory.mktemp("trained"), device=CPU, epochs=4, learning_rate=3e-3)
    made.run()
    forget_accelerator()
    return made.model.eval()


def trainer(
    prepared: Prepared,
    folder: Path,
    *,
    device: torch.device = GPU,
    report: Any = lambda values, step: None,
    **changes: Any,
) -> Trainer:
    precision = changes.get("precision", "no")
    return Trainer(
        make_model(prepared.settings["vocabulary_size"], **changes.pop("model", {})),
        prepared.split("train"),
        prepared.split("val"),
        train_settings(**changes),
        Setup(
            seed=0,
            evaluation_batch=8,
            checkpoints=Checkpoints(folder, {}),
            report=report,
            device=device,
            features=FeatureCache(folder.parent / "kept", limit_gib=1.0, device=device, precision=precision),
        ),
    )


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].cpu(), value, rtol=10 * tolerance, atol=tolerance, msg=f"{name} {{}}".format
        )


# Training


def step_and_batch(prepared: Prepared, **objectives: float) -> tuple[TrainingStep, Batch]:
    """Without dropout, whose draws are other ones on a GPU; with batch norms that learn."""
    step = TrainingStep(make_model(prepared.settings["vocabulary_size"]), Objectives(**objectives), seed=0).train()
    for module in step.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = next(BatchPlan(prepared.split("train"), batch_size=7, captions_per_image=2, seed=0).epoch(0))
    return step, batch


def outcome(step: TrainingStep, batch: Batch, chunk_size: int | None) -> dict[str, Tensor]:
    """Losses, gradients and the batch norms' statistics."""
    if chunk_size is None:
        losses = step(batch)
        losses.total.backward()
    else:
        losses = backward_in_chunks(step, batch, chunk_size, autocast=nullcontext, backward=Tensor.backward)
    found = {f"loss {name}": value.detach() for name, value in losses._asdict().items()}
    found |= {f"gradient {name}": weight.grad for name, weight in step.named_parameters() if weight.grad is not None}
    return found | {f"buffer {name}": value for name, value in step.named_buffers()}


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("objectives", [{"itm": 0.0}, {"itm": 1.0, "simclr_text": 0.3}], ids=["towers", "all"])
def test_losses_and_gradients_are_those_of_the_cpu(
    prepared: Prepared, objectives: dict[str, float], chunk_size: int | None
) -> None:
    step, batch = step_and_batch(prepared, **objectives)
    twin = copy.deepcopy(step).to(GPU)
    expected = outcome(step, batch, chunk_size)
    assert_close(outcome(twin, batch.pinned().to(GPU), chunk_size), expected, tolerance=3e-5)
    assert ("gradient model.fusion.score.weight" in expected) == (objectives["itm"] > 0)


def test_a_float32_training_follows_that_of_the_cpu(prepared: Prepared, tmp_path: Path) -> None:
    """A small rate, as Adam's first steps follow the signs of tiny gradients; no dropout."""
    plain = model_settings()
    text_tower = plain.text_tower.model_copy(update={"dropout": False})
    fusion = plain.fusion.model_copy(update={"dropout": 0.0})
    losses = []
    for device in (CPU, GPU):
        made = trainer(
            prepared,
            tmp_path / device.type,
            device=device,
            model={"text_tower": text_tower, "fusion": fusion},
            epochs=1,
            learning_rate=1e-4,
            **EAGER,
        )
        losses.append(made.run().history[0]["loss"])
        forget_accelerator()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


RELEASED = EAGER | {"epochs": 4, "image_tower": {"frozen_epochs": 1}, "text_tower": {"top_layers": 1}}
ALONE = EAGER | {"epochs": 3, "fusion_epochs": 1, "image_tower": {"lr_multiplier": 0.0}}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"epochs": 4, "compile": "always"}, id="compiled", marks=pytest.mark.slow),
        pytest.param(RELEASED, id="released"),
        pytest.param(ALONE, id="fusion-alone"),
    ],
)
def test_a_bf16_training_learns_and_resumes(prepared: Prepared, tmp_path: Path, changes: dict[str, Any]) -> None:
    """It is taken up in the middle of an epoch, on a GPU to about the same losses: kernels that add in any order (max
    pooling's gradient) change last bits.
    """
    figures: dict[str, float] = {}
    settings = changes | {"precision": "bf16", "learning_rate": 3e-3}
    whole = trainer(prepared, tmp_path / "whole", report=lambda values, step: figures.update(values), **settings)
    expected = whole.run()
    assert whole.model.image_tower.scale.device.type == GPU.type
    assert {parameter.dtype for parameter in whole.model.parameters()} == {torch.float32}
    assert expected.history[2]["contrastive"] < expected.history[0]["contrastive"]
    assert figures["model_flops_utilization"] > 0
    assert figures["peak_memory_gib"] > 0

    broken = trainer(prepared, tmp_path / "broken", **settings)
    stop(broken, after=7)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    state = broken.checkpoints.load()
    assert state
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 2)
    resumed = trainer(prepared, tmp_path / "broken", **settings)
    position = resumed.run()
    assert (position.epoch, position.step) == (expected.epoch, expected.step)
    for row, other in zip(position.history, expected.history, strict=True):
        for name in ("loss", "learning_rate", "temperature"):
            assert row[name] == pytest.approx(other[name], rel=0.03), name


def test_where_memory_runs_out_chunks_become_smaller_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is less than the whole batch took, and more than small chunks did."""
    monkeypatch.setattr("diptych.training.loop.matrix_product_rate", lambda device, precision: 1e12)
    prepared = open_prepared(write_prepared(tmp_path / "p", train=256))
    wide = {"image_tower": {"config": {"embedding_size": 64, "hidden_sizes": [64, 128], "depths": [2, 2]}}}
    changes: dict[str, Any] = {**EAGER, "epochs": 1, "batch_size": 256, "objectives": {"itm": 0.0}, "model": wide}
    taken, losses = {}, {}
    for chunk_size in (None, 16):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        made = trainer(prepared, tmp_path / f"{chunk_size}", chunk_size=chunk_size, **copy.deepcopy(changes))
        losses[chunk_size] = made.run().history[0]["loss"]
        taken[chunk_size] = torch.cuda.max_memory_reserved()
        del made
    torch.cuda.empty_cache()
    limit = (taken[None] + taken[16]) / 2
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(GPU).total_memory)
    try:
        made = trainer(prepared, tmp_path / "limited", **copy.deepcopy(changes))
        history = made.run().history
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.backward.chunk_size is not None
    assert made.backward.chunk_size < 256
    assert history[0]["loss"] == pytest.approx(losses[16], rel=0.03)


@pytest.mark.parametrize(
    "settings", [Augmentation(), Augmentation(crop_scale=0.6, jitter=0.0, grayscale=0.0, blur=0.0)]
)
def test_views_are_those_of_the_cpu_but_for_their_rounding(settings: Augmentation) -> None:
    images, ids = pixels(16), list(range(16))
    made = ImageViews(settings, 0)(images.to(GPU), ids, epoch=1, view=0)
    assert made.device.type == GPU.type
    assert made.dtype == torch.uint8
    difference = (made.cpu().int() - ImageViews(settings, 0)(images, ids, epoch=1, view=0).int()).abs()
    assert (difference <= 4).float().mean() > 0.999


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_rate_of_matrix_products_is_one_that_a_gpu_has(precision: Any) -> None:
    assert 1e12 < matrix_product_rate(GPU, precision) < 1e16


# Retrieval


@pytest.fixture(scope="module")
def on_gpu(trained: DualEncoder) -> DualEncoder:
    return copy.deepcopy(trained).to(GPU)


def embed(model: DualEncoder, prepared: Prepared, device: torch.device, **changes: Any) -> Embedded:
    return embed_split(model, prepared.split("train"), batch_size=8, device=device, **changes)


def test_embeddings_and_recalls_are_those_of_the_cpu(
    prepared: Prepared, trained: DualEncoder, on_gpu: DualEncoder
) -> None:
    expected, found = embed(trained, prepared, CPU), embed(on_gpu, prepared, GPU)
    for name in ("image", "text", "grid", "tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4)
    ranks = [ranks_from_embeddings(made.image, made.text, made.image_of_caption) for made in (expected, found)]
    for direction in ("i2t", "t2i"):
        assert metrics_from_ranks(*ranks[1])[direction] == metrics_from_ranks(*ranks[0])[direction]
    on_device = ranks_from_embeddings(found.image.to(GPU), found.text.to(GPU), found.image_of_caption)
    for own, there in zip(ranks[1].ranks, on_device.ranks, strict=True):
        np.testing.assert_array_equal(own, there)


def test_bf16_embeddings_come_close(prepared: Prepared, trained: DualEncoder, on_gpu: DualEncoder) -> None:
    expected, found = embed(trained, prepared, CPU), embed(on_gpu, prepared, GPU, precision="bf16")
    assert torch.cosine_similarity(found.image, expected.image).min() > 0.995
    assert torch.cosine_similarity(found.text, expected.text).min() > 0.995


def test_means_and_kept_features_are_those_of_the_cpu(
    prepared: Prepared, trained: DualEncoder, on_gpu: DualEncoder, tmp_path: Path
) -> None:
    split = prepared.split("val")
    means = [
        embed_means(model, Inputs(split), batch_size=8, device=device)
        for model, device in ((trained, CPU), (on_gpu, GPU))
    ]
    for expected, found in zip(*means, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    for kind, items in (("images", len(split)), ("texts", len(split.captions))):
        kept = []
        for model, device in ((trained, CPU), (on_gpu, GPU)):
            cache = FeatureCache(tmp_path / device.type, limit_gib=1.0, device=device, precision="no")
            of_split = getattr(cache, kind)(getattr(model, f"{kind[:-1]}_tower"), [split])[0](np.arange(items))
            kept.append(of_split[0] if isinstance(of_split, tuple) else of_split)
        torch.testing.assert_close(kept[1], kept[0], rtol=1e-2, atol=2e-3)


def test_logits_querybank_and_what_is_ranked_by_them_are_those_of_the_cpu(
    prepared: Prepared, trained: DualEncoder, on_gpu: DualEncoder
) -> None:
    embedded, scale = embed(trained, prepared, CPU), trained.logit_scale.item()
    candidates, banks = [], []
    for model, device in ((trained, CPU), (on_gpu, GPU)):
        banks.append(embed_querybank(model, Inputs(prepared.split("train")), seed=0, batch_size=8, device=device))
        candidates.append(candidate_logits(model, embedded, 4, device=device))
    for one, other in zip(*candidates, strict=True):
        torch.testing.assert_close(other.itm, one.itm, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.alignment, one.alignment, rtol=1e-3, atol=1e-4)
    ranks = [reranked_ranks(both, scale, Directed(Weights(0.5, 0.25), Weights(0.25, 0.5))).ranks for both in candidates]
    for one, other in zip(*ranks, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = banks[0].image_bias(embedded.image, scale)
    torch.testing.assert_close(banks[1].image_bias(embedded.image, scale), expected, rtol=0, atol=2e-3)
    there = banks[0].image_bias(embedded.image.to(GPU), scale)
    torch.testing.assert_close(there.cpu(), expected, rtol=0, atol=1e-5)


def test_the_packaged_model_answers_as_on_the_cpu(
    tmp_path: Path, photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(artifacts={"model": str(write_tiny_model(tmp_path / "model"))})
    texts = ["a red square", None, "two yellow stars above a blue circle", "a green triangle"]
    asked = pd.DataFrame({"text": texts, "image": [None, photo(1), photo(2), photo(3)]})
    answers = []
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there and GPU.type == "cuda")
        packaged = PackagedModel()
        packaged.load_context(context)
        assert packaged.retriever.device.type == (GPU.type if there else "cpu")
        answers.append(packaged.predict(None, asked))
    for column in ("bias", "similarity", "match", "alignment", "score"):
        np.testing.assert_allclose(answers[1][column], answers[0][column], rtol=1e-3, atol=1e-4)
    for row in (0, 1):
        np.testing.assert_allclose(answers[1]["embedding"][row], answers[0]["embedding"][row], atol=1e-5)

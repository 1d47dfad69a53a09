"""The training loop: epochs of steps, validation recall after each, the best weights kept, resumable at any step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diptych.config import Train
from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.device import choose_precision
from diptych.model.dual_encoder import DualEncoder
from diptych.model.gathering import rank, stack_processes, world_size
from diptych.model.normalization import synchronize_batch_norms
from diptych.progress import progress
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.metrics import KS, mean_log_rank, metrics_from_ranks
from diptych.retrieval.ranking import DIRECTIONS, ranks_from_embeddings
from diptych.training.backward import Backward
from diptych.training.batches import CALL_TOKENS, GPU_CALL_TOKENS, Batch, BatchPlan, prefetched
from diptych.training.checkpoints import Checkpoints
from diptych.training.compiling import Compilation
from diptych.training.features import FeatureCache
from diptych.training.flops import flops_per_image, matrix_product_rate
from diptych.training.inputs import TrainingInputs
from diptych.training.optimisation import freeze, frozen_in, make_optimizer, make_schedule, phases
from diptych.training.random_state import random_state, set_random_state
from diptych.training.step import Losses, TrainingStep
from diptych.training.throughput import Throughput
from diptych.training.views import ImageViews

log = logging.getLogger(__name__)

Report = Callable[[dict[str, float], int], None]
"""A function that takes figures by name and the step, counted from 1, that they belong to."""

REPORT_EVERY = 10
"""Number of steps between two reports of the losses; the first step of an epoch is reported too."""
VAL_RECALLS = [f"{direction}_recall@{k}" for direction in DIRECTIONS for k in KS]
VAL_METRICS = ["rsum", "mean_log_rank", *VAL_RECALLS]


@dataclass
class Position:
    """Position of a training in its epochs and steps, with its history."""

    epoch: int = 0
    """Number of finished epochs."""
    step: int = 0
    """Number of finished steps in the present epoch."""
    best_epoch: int = 0
    """Epoch, counted from 1, whose towers rank val best (`mean_log_rank`); 0 before there is one."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row for each epoch: mean losses, learning rate, temperature, recalls on val."""


@dataclass(frozen=True)
class Setup:
    """Seed, device, checkpoints and reports of a training.

    Attributes:
        seed: seed of batches, dropout, views and negatives.
        evaluation_batch: number of images or captions that are encoded at once on val.
        checkpoints: checkpoint of the training, which continues from one that is there already.
        report: receives losses, rates, throughput and recalls.
        device: device to train on.
        features: cache of the features of frozen towers; None: they are computed in every epoch.
    """

    seed: int
    evaluation_batch: int
    checkpoints: Checkpoints
    report: Report
    device: torch.device
    features: FeatureCache | None = None


class Trainer:
    """Training of `model` on one split, with its weights selected on another.

    Args:
        model: changed in place; holds the best weights after `run`.
        train: the split to train on.
        val: the split to select weights on; it shares no image with `train`.
        settings: params.yaml's `train`.
        setup: seed, device, checkpoints and the like.

    Raises:
        DiptychError: the train split is too small for a batch, or a batch for the processes.
    """

    def __init__(
        self, model: DualEncoder, train: PreparedSplit, val: PreparedSplit, settings: Train, setup: Setup
    ) -> None:
        from accelerate import Accelerator

        seed, device = setup.seed, setup.device
        self.precision = choose_precision(settings.precision, device)
        self.accelerator = Accelerator(mixed_precision=self.precision, cpu=device.type == "cpu")
        self.plan = BatchPlan(
            train,
            batch_size=settings.batch_size,
            captions_per_image=settings.captions_per_image,
            seed=seed,
            rank=rank(),
            world_size=world_size(),
            call_tokens=CALL_TOKENS if device.type == "cpu" else GPU_CALL_TOKENS,
        )
        self.model = model.to(self.device)
        synchronize_batch_norms(model)
        self.step = TrainingStep(model, settings.objectives, seed).to(self.device)
        self.optimizer = self.accelerator.prepare(make_optimizer(self.step, settings))
        phase_steps = [self.plan.steps * epochs for epochs in phases(settings)]
        self.schedule = make_schedule(self.optimizer, phase_steps, settings.warmup)
        self.compilation = Compilation(self.model, settings, self.device, self.plan.steps)
        self.val = val
        self.inputs = TrainingInputs(train, val, settings, seed, setup.features)
        self.settings = settings
        self.evaluation_batch = setup.evaluation_batch
        self.checkpoints = setup.checkpoints
        self.report = setup.report
        self.position = Position()
        self.sums = self._zero_sums()
        self.seed = seed
        self.backward = Backward(self.step, self.accelerator, settings.chunk_size)
        self._views = settings.augmentation and ImageViews(settings.augmentation, seed)
        self._second_views = ImageViews(settings.views, seed) if settings.objectives.simclr_image else None
        self._unchecked: tuple[Batch, Tensor, torch.cuda.Event | None] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.accelerator.device

    @property
    def val_inputs(self) -> Inputs:
        """Inputs of the val split, with the features of what is frozen."""
        return self.inputs.val()

    @property
    def train_inputs(self) -> Inputs:
        """Inputs of the train split, without augmentation."""
        return self.inputs.plain()

    def run(self) -> Position:
        """Train to the end, or until `patience` runs out; the model holds the best weights afterwards.

        Raises:
            DiptychError: a loss is NaN or infinite; the message names step and images. Or memory does not suffice.
        """
        # Each process draws its own dropout.
        torch.manual_seed(self.seed + rank())
        self._resume()
        self.inputs.enter(self.model, self._present_epoch())
        total = self.plan.steps * self.settings.all_epochs
        with progress(None, "train", unit="steps", total=total, initial=self._steps()) as bar:
            while self.position.epoch < self.settings.all_epochs:
                self._begin_epoch()
                self._train_epoch(bar)
                self._finish_epoch()
        self.compilation.undo()
        self.accelerator.wait_for_everyone()
        return self.position

    # An epoch

    def _begin_epoch(self) -> None:
        epoch = self.position.epoch
        with self.compilation.paused():
            # A tower that was compiled could not be split into layers.
            self.inputs.enter(self.model, epoch)
        freeze(self.step, self.settings, epoch)
        self.compilation.compile_towers()
        # A fusion that learns alone sees images and captions as it will see them afterwards, without dropout and views.
        self.step.train(not self._fusion_alone)
        self.model.fusion.train()

    def _train_epoch(self, bar: Any) -> None:
        epoch, throughput = self.position.epoch, Throughput()
        batches = self.plan.epoch(epoch, self.position.step, self.inputs.train(epoch))
        flops: float | None = None
        for loaded in throughput.watch(prefetched(batches, self.device)):
            batch = self._with_views(loaded.to(self.device))
            with self.compilation.paused(batch.step >= self.plan.whole_steps):
                losses = self._train_step(batch)
            if flops is None:
                with throughput.paused():
                    flops = flops_per_image(self.step, batch, self.accelerator.autocast, self.backward.chunk_size)
            self._count_step(losses)
            bar.update()
        self._check_loss()
        self._report_speed(throughput, flops or 0.0, bar)

    def _train_step(self, batch: Batch) -> Losses:
        losses = self.backward(batch)
        self.accelerator.clip_grad_norm_(self.step.parameters(), self.settings.clip_norm)
        self._check_loss()
        self._unchecked = batch, *_start_copy(losses.total.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.bound_temperature()
        self.schedule.step()
        return losses

    def _finish_epoch(self) -> None:
        """Validate, save the weights if they are the best, and go on to the next epoch.

        The fusion's own epochs leave the towers as they are, and repeat their figures on val.
        """
        alone = self._fusion_alone
        metrics = self._best_metrics() if alone else self._validate()
        self._append_to_history(metrics)
        epoch, steps = self.position.epoch, self._steps()
        if not alone:
            self._save_if_best()
            self._skip_epochs_without_patience()
            if self._fusion_alone:
                self._restore_best()
        self.sums = self._zero_sums()
        self._save()
        self.report(metrics, steps)
        phase = "fusion, epoch" if alone else "epoch"
        log.info("%s %d of %d: %s", phase, epoch, self.settings.all_epochs, _line(self.position.history[-1]))

    # Steps

    def _with_views(self, batch: Batch) -> Batch:
        """Return the batch with its images augmented and their second views made, as the settings say."""
        if self._fusion_alone:
            return batch
        images, key = batch.images, (batch.image_ids, batch.epoch)
        # The view of stored features was chosen when they were read.
        stored = images.is_floating_point()
        return replace(
            batch,
            images=self._views(images, *key, view=0) if self._views and not stored else images,
            views=self._second_views(images, *key, view=1) if self._second_views else None,
        )

    def _count_step(self, losses: Losses) -> None:
        position = self.position
        position.step += 1
        self.sums += torch.stack([loss.detach() for loss in losses])
        if self._steps() % REPORT_EVERY == 0 or position.step == 1:
            self._check_loss()
            self.report({**_by_name(losses), **self._rates()}, self._steps())
        if position.step % self.settings.checkpoint_every == 0 and position.step < self.plan.steps:
            self._save()

    def _check_loss(self) -> None:
        """Raise an error if the previous step's loss is not finite; reading the present one would make a GPU wait."""
        if self._unchecked is None:
            return
        batch, loss, arrival = self._unchecked
        self._unchecked = None
        if arrival:
            arrival.synchronize()
        if not torch.isfinite(loss):
            raise DiptychError(
                f"the loss is {loss.item()} in epoch {batch.epoch + 1}, step {batch.step + 1}, "
                f"with images {batch.image_ids}. Look at these images; then lower train.learning_rate or raise "
                "train.warmup."
            )

    def _steps(self) -> int:
        return self.position.epoch * self.plan.steps + self.position.step

    # Validation and selection

    def _validate(self) -> dict[str, float]:
        """Return the towers' recalls on val; one process computes them, so that all select the same weights."""
        figures = torch.zeros(len(VAL_METRICS), dtype=torch.float64)
        if self.accelerator.is_main_process:
            with self.compilation.paused():
                embedded = embed_split(
                    self.model,
                    self.val,
                    inputs=self.inputs.val(),
                    batch_size=self.evaluation_batch,
                    device=self.device,
                    precision=self.precision,
                    description="validate",
                )
            ranks = ranks_from_embeddings(embedded.image, embedded.text, self.val.image_of_caption)
            metrics = metrics_from_ranks(*ranks)
            recalls = [metrics[name[:3]][name[4:]] for name in VAL_RECALLS]
            figures.copy_(torch.tensor([metrics["rsum"], mean_log_rank(*ranks.ranks), *recalls]))
        # The first process's figures; the others' are zero.
        figures = stack_processes(figures.to(self.device))[0]
        return dict(zip([f"val_{name}" for name in VAL_METRICS], figures.tolist(), strict=True))

    def _best_metrics(self) -> dict[str, float]:
        """Return what the best epoch's towers had on val."""
        row = self.position.history[self.position.best_epoch - 1]
        return {name: value for name, value in row.items() if name.startswith("val_")}

    def _append_to_history(self, metrics: dict[str, float]) -> None:
        position = self.position
        means = stack_processes(self.sums).mean(dim=0) / self.plan.steps
        losses = _by_name(Losses(*means))
        position.history.append({"epoch": position.epoch + 1, **losses, **self._rates(), **metrics})
        position.epoch, position.step = position.epoch + 1, 0

    def _save_if_best(self) -> None:
        history = self.position.history
        if min(history, key=lambda row: row["val_mean_log_rank"]) is history[-1]:
            self.position.best_epoch = self.position.epoch
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.model.state_dict())

    def _skip_epochs_without_patience(self) -> None:
        """Go on with the fusion's own epochs, or with the end, where `patience` has run out."""
        position, patience = self.position, self.settings.patience
        if patience is not None and position.epoch - position.best_epoch >= patience:
            for _ in range((self.settings.epochs - position.epoch) * self.plan.steps):
                self.schedule.step()
            position.epoch = self.settings.epochs

    def _restore_best(self) -> None:
        """Load the best weights, from which the fusion's own epochs begin, or which are the result."""
        self.accelerator.wait_for_everyone()
        self.model.load_state_dict(self.checkpoints.load_best())

    @property
    def _fusion_alone(self) -> bool:
        return frozen_in(self.settings, self.position.epoch).encoders

    def _present_epoch(self) -> int:
        """Return the present epoch, or, of a finished training, the last one; `patience` may have skipped some."""
        finished = self.position.epoch == self.settings.all_epochs
        return int(self.position.history[-1]["epoch"]) - 1 if finished else self.position.epoch

    # Figures

    def _zero_sums(self) -> Tensor:
        """Return the sums of an epoch's losses, on the device: to read losses in each step would make a GPU wait."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(len(Losses._fields), dtype=dtype, device=self.device)

    def _rates(self) -> dict[str, float]:
        scale = self.model.logit_scale.item()
        if not scale > 0:
            raise DiptychError("the temperature has grown beyond all bounds; lower train.learning_rate.")
        return {"learning_rate": float(self.schedule.get_last_lr()[0]), "temperature": 1 / scale}

    def _report_speed(self, throughput: Throughput, flops: float, bar: Any) -> None:
        speed = throughput.figures(world_size(), self.device, flops)
        rate = matrix_product_rate(self.device, self.precision)
        speed["model_flops_utilization"] = speed.pop("flops_per_second") / rate
        bar.set_postfix_str(_speed(speed))
        self.report(speed, self._steps())

    # Checkpoints

    def _save(self) -> None:
        """Write the checkpoint in the first process, with every process's random state and sums."""
        self._check_loss()
        random = stack_processes(random_state(self.device).to(self.device)).cpu()
        sums = stack_processes(self.sums).cpu()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.checkpoints.save(
                {
                    "position": asdict(self.position),
                    "sums": sums,
                    "chunk_size": self.backward.chunk_size,
                    "step": self.step.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "scaler": scaler.state_dict() if scaler else {},
                    "random": random,
                }
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        state = self.checkpoints.load()
        if state is None:
            return
        self.position = Position(**state["position"])
        self.sums = state["sums"][rank()].to(self.device)
        self.backward.chunk_size = state["chunk_size"]
        self.step.load_state_dict(state["step"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"][rank()], self.device)
        log.info("resumed in epoch %d after step %d", self.position.epoch + 1, self.position.step)


def _start_copy(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start to copy `value` to the CPU; return the copy and, from a GPU, the event of its arrival.

    Reading `value` itself would wait for all the work that the GPU has been given since.
    """
    if value.device.type != "cuda":
        return value, None
    copy, arrival = value.to("cpu", non_blocking=True), torch.cuda.Event()
    arrival.record()
    return copy, arrival


def _by_name(losses: Losses) -> dict[str, float]:
    """Return the losses by the names that reports use."""
    values = {name: value.item() for name, value in losses._asdict().items()}
    return {"loss": values.pop("total"), **values}


def _line(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}, val RSUM {row['val_rsum']:.1f}, temperature {row['temperature']:.3f}"


def _speed(figures: dict[str, float]) -> str:
    return (
        f"{figures['images_per_second']:.0f} images/s, {figures['captions_per_second']:.0f} captions/s, "
        f"{figures['waiting_share']:.1%} waiting for data, {figures['model_flops_utilization']:.0%} MFU, "
        f"{figures['peak_memory_gib']:.1f} GiB"
    )

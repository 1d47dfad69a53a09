"""The training loop: epochs of steps, validation recall after each, the best weights kept, resumable at any step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diptych.config import Train
from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.device import choose_precision
from diptych.model.dual_encoder import DualEncoder
from diptych.model.gathering import gather_rows, rank, world_size
from diptych.model.normalization import synchronize_batch_norms
from diptych.progress import progress
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.metrics import mean_log_rank, metrics_from_ranks
from diptych.retrieval.ranking import ranks_from_embeddings
from diptych.training.backward import Backward
from diptych.training.batches import CALL_TOKENS, GPU_CALL_TOKENS, Batch, BatchPlan, prefetched
from diptych.training.checkpoints import Checkpoints
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
"""Takes figures by name, and the step (from 1 on) that they belong to."""

COMPILED_FROM = 3000
"""Steps from which on compiling pays on a GPU: of ResNet-50 and BERT-base it took 75 s on an H100, for 29 ms a step."""
REPORT_EVERY = 10
"""Steps between two reports of the losses; the first step of an epoch is reported too."""


@dataclass
class Position:
    """Where the training stands."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps finished in the present epoch."""
    best_epoch: int = 0
    """The epoch, from 1 on, whose towers rank val best (`mean_log_rank`); 0 before there is one."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A row an epoch: mean losses, learning rate, temperature, val recalls."""


class Trainer:
    """Trains `model` on one split and selects its weights on another.

    Args:
        model: changed in place; holds the best weights after `run`.
        train, val: never the same images.
        settings: params.yaml's `train`.
        seed: of batches, dropout, views and negatives.
        evaluation_batch: how many images or captions are embedded at once on val.
        checkpoints: where to stand by; what it holds already is taken up.
        features: where features of frozen towers are kept; None: they are computed anew each time.
        report: is told losses, rates, throughput and recalls.

    Raises:
        DiptychError: the train split is too small for a batch, or a batch for the processes.
    """

    def __init__(
        self,
        model: DualEncoder,
        train: PreparedSplit,
        val: PreparedSplit,
        settings: Train,
        *,
        seed: int,
        evaluation_batch: int,
        checkpoints: Checkpoints,
        report: Report,
        device: torch.device,
        features: FeatureCache | None = None,
    ) -> None:
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
        self.val = val
        self.inputs = TrainingInputs(train, val, settings, seed, features)
        self.settings = settings
        self.evaluation_batch = evaluation_batch
        self.checkpoints = checkpoints
        self.report = report
        self.position = Position()
        self.sums = self._no_sums()
        self.seed = seed
        self.backward = Backward(self.step, self.accelerator, settings.chunk_size)
        self._views = settings.augmentation and ImageViews(settings.augmentation, seed)
        self._second_views = ImageViews(settings.views, seed) if settings.objectives.simclr_image else None
        self._unchecked: tuple[Batch, Tensor, torch.cuda.Event | None] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    @property
    def val_inputs(self) -> Inputs:
        """Of the val split, with the features of what is frozen."""
        return self.inputs.val()

    @property
    def train_inputs(self) -> Inputs:
        """Of the train split, without views."""
        return self.inputs.plain()

    def run(self) -> Position:
        """Trains to the end, or until `patience` runs out; the model holds the best weights afterwards.

        Raises:
            DiptychError: a loss is NaN or infinite; the message names step and images. Or memory does not suffice.
        """
        # Each process drops out by itself.
        torch.manual_seed(self.seed + rank())
        self._resume()
        total = self.plan.steps * self.settings.all_epochs
        finished = self.position.epoch == self.settings.all_epochs
        # Of a finished training the last epoch that there was: patience may have left out those after it.
        epoch = int(self.position.history[-1]["epoch"]) - 1 if finished else self.position.epoch
        self.inputs.enter(self.model, epoch)
        with progress(None, "train", unit="steps", total=total, initial=self._steps()) as bar:
            while self.position.epoch < self.settings.all_epochs:
                self._train_epoch(bar)
                self._finish_epoch()
        for module in self.model.modules():
            # What comes now has other sizes, and each would be compiled anew.
            module._compiled_call_impl = None
        self.accelerator.wait_for_everyone()
        return self.position

    @property
    def _compiles(self) -> bool:
        return compiles(self.settings, self.device, self.plan.steps)

    def _computed_each_step(self) -> list[torch.nn.Module]:
        """Of each tower, images first, what is computed in every step."""
        towers = self.model.image_tower, self.model.text_tower
        return [tower.upper.model if tower.upper else tower.backbone for tower in towers]

    def _compile(self) -> None:
        if self._compiles:
            for computed, dynamic in zip(self._computed_each_step(), (False, True), strict=True):
                if computed._compiled_call_impl is None:
                    computed.compile(dynamic=dynamic)

    def _eagerly(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Without what was compiled: for sizes that come too seldom to be compiled for."""
        return torch.compiler.set_stance("force_eager") if wanted and self._compiles else nullcontext()

    def _train_epoch(self, bar: Any) -> None:
        epoch = self.position.epoch
        with self._eagerly():
            # Compiled, a tower would not come apart.
            self.inputs.enter(self.model, epoch)
        freeze(self.step, self.settings, epoch)
        self._compile()
        # A fusion that learns alone sees images and captions as it will see them afterwards, without dropout and views.
        self.step.train(not self._fusion_alone)
        self.model.fusion.train()
        throughput = Throughput()
        flops: float | None = None
        batches = self.plan.epoch(epoch, self.position.step, self.inputs.train(epoch))
        for loaded in throughput.watch(prefetched(batches, self.device)):
            batch = self._with_views(loaded.to(self.device))
            with self._eagerly(batch.step >= self.plan.whole_steps):
                losses = self._train_step(batch)
            if flops is None:
                with throughput.paused():
                    flops = flops_per_image(self.step, batch, self.accelerator.autocast, self.backward.chunk_size)
            self.position.step += 1
            self.sums += torch.stack([loss.detach() for loss in losses])
            bar.update()
            if self._steps() % REPORT_EVERY == 0 or self.position.step == 1:
                self._report_step(losses)
            if self.position.step % self.settings.checkpoint_every == 0 and self.position.step < self.plan.steps:
                self._save()
        self._check_loss()
        speed = throughput.figures(world_size(), self.device, flops or 0.0)
        rate = matrix_product_rate(self.device, self.precision)
        speed["model_flops_utilization"] = speed.pop("flops_per_second") / rate
        bar.set_postfix_str(_speed(speed))
        self.report(speed, self._steps())

    def _with_views(self, batch: Batch) -> Batch:
        """The batch with its images augmented and their second views made, as the settings say."""
        if self._fusion_alone:
            return batch
        images, place = batch.images, (batch.image_ids, batch.epoch)
        # Of kept features the inputs have chosen the view already.
        kept = images.is_floating_point()
        return replace(
            batch,
            images=self._views(images, *place, view=0) if self._views and not kept else images,
            views=self._second_views(images, *place, view=1) if self._second_views else None,
        )

    def _train_step(self, batch: Batch) -> Losses:
        losses = self.backward(batch)
        self.accelerator.clip_grad_norm_(self.step.parameters(), self.settings.clip_norm)
        self._check_loss()
        self._unchecked = batch, *_on_its_way(losses.total.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.bound_temperature()
        self.schedule.step()
        return losses

    def _check_loss(self) -> None:
        """Of the step before: to read the present one's would keep a GPU waiting."""
        if self._unchecked is None:
            return
        batch, loss, arrival = self._unchecked
        self._unchecked = None
        if arrival:
            arrival.synchronize()
        if not torch.isfinite(loss):
            raise DiptychError(
                f"the loss is {loss.item()} in epoch {batch.epoch + 1}, step {batch.step + 1}, "
                f"with images {batch.image_ids}. Look at these, lower train.learning_rate or raise train.warmup."
            )

    def _finish_epoch(self) -> None:
        """Validates, keeps the weights if they are the best, and stands ready for the next epoch.

        The fusion's own epochs leave the towers as they are, and what these had on val.
        """
        position, alone = self.position, self._fusion_alone
        metrics = _of_val(position.history[position.best_epoch - 1]) if alone else self._validate()
        position.history.append({"epoch": position.epoch + 1, **self._means(), **metrics})
        position.epoch, position.step = position.epoch + 1, 0
        better = not alone and min(position.history, key=lambda row: row["val_mean_log_rank"]) is position.history[-1]
        if better:
            position.best_epoch = position.epoch
        if better and self.accelerator.is_main_process:
            self.checkpoints.save_best(self.model.state_dict())
        epoch, steps = position.epoch, self._steps()
        if not alone and self._out_of_patience():
            self._leave_out_epochs()
        if self._fusion_alone and not alone:
            # The fusion's own epochs begin from the best weights, and without them these are the result.
            self.accelerator.wait_for_everyone()
            self.model.load_state_dict(self.checkpoints.load_best())
        self.sums = self._no_sums()
        self._save()
        self.report(metrics, steps)
        which = "fusion, epoch" if alone else "epoch"
        log.info("%s %d of %d: %s", which, epoch, self.settings.all_epochs, _line(position.history[-1]))

    def _validate(self) -> dict[str, float]:
        """Recalls of the towers on val; computed once, so that all processes select the same weights."""
        recalls = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
        names = ["rsum", "mean_log_rank", *recalls]
        figures = torch.zeros(len(names), dtype=torch.float64)
        if self.accelerator.is_main_process:
            with self._eagerly():
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
            values = [metrics["rsum"], mean_log_rank(*ranks.ranks), *(metrics[name[:3]][name[4:]] for name in recalls)]
            figures.copy_(torch.tensor(values))
        # The first process's own; the others' are zero.
        figures = gather_rows(figures.unsqueeze(0).to(self.device))[0]
        return dict(zip([f"val_{name}" for name in names], figures.tolist(), strict=True))

    def _no_sums(self) -> Tensor:
        """Of the losses of an epoch, on the device: to read them each step would keep a GPU waiting."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(len(Losses._fields), dtype=dtype, device=self.device)

    def _means(self) -> dict[str, float]:
        """Over the epoch's steps and all processes."""
        means = gather_rows(self.sums.unsqueeze(0)).mean(dim=0) / self.plan.steps
        return {**_named(Losses(*means)), **self._rates()}

    def _rates(self) -> dict[str, float]:
        scale = self.model.logit_scale.item()
        if not scale > 0:
            raise DiptychError("the temperature has grown beyond all bounds; lower train.learning_rate.")
        return {"learning_rate": float(self.schedule.get_last_lr()[0]), "temperature": 1 / scale}

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.position.epoch - self.position.best_epoch >= patience

    def _leave_out_epochs(self) -> None:
        """Goes on with the fusion's own epochs, or with the end."""
        for _ in range((self.settings.epochs - self.position.epoch) * self.plan.steps):
            self.schedule.step()
        self.position.epoch = self.settings.epochs

    @property
    def _fusion_alone(self) -> bool:
        return frozen_in(self.settings, self.position.epoch).encoders

    def _steps(self) -> int:
        return self.position.epoch * self.plan.steps + self.position.step

    def _report_step(self, losses: Losses) -> None:
        self._check_loss()
        self.report({**_named(losses), **self._rates()}, self._steps())

    def _save(self) -> None:
        """Every process's random state goes into the one checkpoint, which the first process writes."""
        self._check_loss()
        random = gather_rows(random_state(self.device).unsqueeze(0).to(self.device)).cpu()
        sums = gather_rows(self.sums.unsqueeze(0)).cpu()
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


def compiles(settings: Train, device: torch.device, epoch_steps: int) -> bool:
    """Whether a training of epochs of `epoch_steps` compiles the towers."""
    if settings.compile == "auto":
        return device.type == "cuda" and epoch_steps * settings.all_epochs >= COMPILED_FROM
    return settings.compile == "always"


def _of_val(row: dict[str, float]) -> dict[str, float]:
    """What an epoch had on val."""
    return {name: value for name, value in row.items() if name.startswith("val_")}


def _on_its_way(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy of `value` on the CPU, and, from a GPU, when it will be there: reading `value` itself would wait for all
    that the GPU has been given since.
    """
    if value.device.type != "cuda":
        return value, None
    copy, arrival = value.to("cpu", non_blocking=True), torch.cuda.Event()
    arrival.record()
    return copy, arrival


def _named(losses: Losses) -> dict[str, float]:
    """By the names that reports use."""
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

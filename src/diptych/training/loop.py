"""The training loop: epochs of steps, validation recall after each, the best weights kept, resumable at any step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diptych.config import Train
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.model.gathering import gather_rows, rank, world_size
from diptych.progress import progress
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.metrics import retrieval_metrics
from diptych.training.batches import Batch, BatchPlan
from diptych.training.checkpoints import Checkpoints
from diptych.training.optimisation import freeze, make_optimizer, make_schedule
from diptych.training.step import Losses, TrainingStep
from diptych.training.throughput import Throughput

log = logging.getLogger(__name__)

Report = Callable[[dict[str, float], int], None]
"""Takes figures by name, and the step (from 1 on) that they belong to."""

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
    """The epoch, from 1 on, with the best val RSUM; 0 before there is one."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A row an epoch: mean losses, learning rate, temperature, val recalls."""


class Trainer:
    """Trains `model` on one split and selects its weights on another.

    Args:
        model: changed in place; holds the best weights after `run`.
        train, val: never the same images.
        settings: params.yaml's `train`.
        seed: of batches, dropout and negatives.
        evaluation_batch: how many images or captions are embedded at once on val.
        checkpoints: where to stand by; what it holds already is taken up.
        report: is told losses, rates, throughput and recalls; only the first process calls it.
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
    ) -> None:
        self.accelerator = Accelerator(mixed_precision=settings.precision, cpu=device.type == "cpu")
        self.plan = BatchPlan(
            train,
            batch_size=settings.batch_size,
            captions_per_image=settings.captions_per_image,
            seed=seed,
            rank=rank(),
            world_size=world_size(),
        )
        if self.plan.steps == 0:
            raise DiptychError(
                f"the train split has {len(train)} image(s), too few for {world_size()} process(es) of two images "
                "each; import more images, or name another split in data.splits.train."
            )
        optimizer = make_optimizer(model, settings)
        self.schedule = make_schedule(optimizer, self.plan.steps * settings.epochs, settings.warmup)
        step = TrainingStep(model, settings.objectives)
        self.step, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.model = model
        self.val = val
        self.settings = settings
        self.evaluation_batch = evaluation_batch
        self.checkpoints = checkpoints
        self.report = report if self.accelerator.is_main_process else _silent
        self.position = Position()
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.seed = seed

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    def run(self) -> Position:
        """Trains to the end, or until `patience` runs out; the model holds the best weights afterwards.

        Raises:
            DiptychError: a loss is NaN or infinite; the message names step and images.
        """
        # Each process drops out and draws negatives of its own.
        torch.manual_seed(self.seed + rank())
        self._resume()
        total = self.plan.steps * self.settings.epochs
        done = self.plan.steps * self.position.epoch + self.position.step
        with progress(
            None, "train", unit="steps", total=total, initial=done, disable=not self.accelerator.is_main_process
        ) as bar:
            while self.position.epoch < self.settings.epochs and not self._out_of_patience():
                self._train_epoch(bar)
                self._finish_epoch()
        self.accelerator.wait_for_everyone()
        self.model.load_state_dict(self.checkpoints.load_best())
        return self.position

    def _freeze(self) -> None:
        """Freezes and releases the towers as the epoch demands."""
        before = [parameter.requires_grad for parameter in self.model.parameters()]
        freeze(self.model, self.settings, self.position.epoch)
        if before != [parameter.requires_grad for parameter in self.model.parameters()]:
            # Several processes wait for the gradients that were wanted when the step was prepared.
            self.step = self.accelerator.prepare(self.accelerator.unwrap_model(self.step, keep_fp32_wrapper=False))

    def _train_epoch(self, bar: Any) -> None:
        self._freeze()
        self.step.train()
        throughput = Throughput()
        for batch in throughput.watch(self.plan.epoch(self.position.epoch, self.position.step)):
            losses = self._train_step(batch.to(self.device))
            self.position.step += 1
            self.sums += torch.stack([loss.detach().double() for loss in losses]).cpu()
            bar.update()
            if self._steps() % REPORT_EVERY == 0 or self.position.step == 1:
                self._report_step(losses)
            if self.position.step % self.settings.checkpoint_every == 0 and self.position.step < self.plan.steps:
                self._save()
        speed = throughput.figures(world_size(), self.device)
        bar.set_postfix_str(_speed(speed))
        self.report(speed, self._steps())

    def _train_step(self, batch: Batch) -> Losses:
        with self.accelerator.autocast():
            losses: Losses = self.step(batch)
        if not torch.isfinite(losses.total):
            raise DiptychError(
                f"the loss is {losses.total.item()} in epoch {self.position.epoch + 1}, step {self.position.step + 1}, "
                f"with images {batch.image_ids}. Look at these, lower train.learning_rate or raise train.warmup."
            )
        self.accelerator.backward(losses.total)
        self.accelerator.clip_grad_norm_(self.step.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return losses

    def _finish_epoch(self) -> None:
        """Validates, keeps the weights if they are the best, and stands ready for the next epoch."""
        metrics = self._validate()
        position = self.position
        position.history.append({"epoch": position.epoch + 1, **self._means(), **metrics})
        position.epoch, position.step = position.epoch + 1, 0
        best = max(position.history, key=lambda row: row["val_rsum"])
        if best is position.history[-1]:
            position.best_epoch = position.epoch
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.model.state_dict())
        self.sums.zero_()
        self._save()
        self.report(metrics, self._steps())
        log.info("epoch %d of %d: %s", position.epoch, self.settings.epochs, _line(position.history[-1]))

    def _validate(self) -> dict[str, float]:
        """Recalls of the towers on val; computed once, so that all processes select the same weights."""
        names = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
        figures = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.device)
        if self.accelerator.is_main_process:
            embedded = embed_split(
                self.model,
                self.val,
                batch_size=self.evaluation_batch,
                device=self.device,
                precision=self.settings.precision,
                description="validate",
            )
            metrics = retrieval_metrics(embedded.image, embedded.text, self.val.image_of_caption)
            values = [metrics["rsum"], *(metrics[name[:3]][name[4:]] for name in names)]
            figures.copy_(torch.tensor(values))
        if world_size() > 1:
            torch.distributed.broadcast(figures, src=0)
        return dict(zip(["val_rsum", *(f"val_{name}" for name in names)], figures.tolist(), strict=True))

    def _means(self) -> dict[str, float]:
        return {**_named(Losses(*(self.sums / self.plan.steps))), **self._rates()}

    def _rates(self) -> dict[str, float]:
        scale = self.model.logit_scale.item()
        if not scale > 0:
            raise DiptychError("the temperature has grown beyond all bounds; lower train.learning_rate.")
        return {"learning_rate": float(self.schedule.get_last_lr()[0]), "temperature": 1 / scale}

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.position.epoch - self.position.best_epoch >= patience

    def _steps(self) -> int:
        return self.position.epoch * self.plan.steps + self.position.step

    def _report_step(self, losses: Losses) -> None:
        self.report({**_named(losses), **self._rates()}, self._steps())

    def _save(self) -> None:
        """Every process's random state goes into the one checkpoint, which the first process writes."""
        random = gather_rows(self._random_state().unsqueeze(0).to(self.device)).cpu()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.checkpoints.save(
                {
                    "position": asdict(self.position),
                    "sums": self.sums,
                    "model": self.model.state_dict(),
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
        self.sums = state["sums"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._set_random_state(state["random"][rank()])
        log.info("resumed in epoch %d after step %d", self.position.epoch + 1, self.position.step)

    def _random_state(self) -> Tensor:
        """The CPU generator's state with the GPU's behind it, uint8 (bytes,)."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return torch.cat(states)

    def _set_random_state(self, state: Tensor) -> None:
        own = len(torch.get_rng_state())
        # A clone of its own: torch reads the state as if it were aligned, and crashes where a row is not.
        torch.set_rng_state(state[:own].clone())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[own:].clone(), self.device)


def _named(losses: Losses) -> dict[str, float]:
    return {
        "loss": losses.total.item(),
        "contrastive": losses.contrastive.item(),
        "matching": losses.matching.item(),
    }


def _silent(values: dict[str, float], step: int) -> None:
    """Of the processes that are not the first."""


def _line(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}, val RSUM {row['val_rsum']:.1f}, temperature {row['temperature']:.3f}"


def _speed(figures: dict[str, float]) -> str:
    return (
        f"{figures['images_per_second']:.0f} images/s, {figures['waiting_share']:.1%} waiting for data, "
        f"{figures['peak_memory_gib']:.1f} GiB"
    )

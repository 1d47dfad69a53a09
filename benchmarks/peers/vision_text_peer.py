"""transformers: VisionTextDualEncoderModel with its Trainer, as in examples/pytorch/contrastive-image-text.

The model takes the timm tower, a TimmWrapperModel, unchanged; only the width of its output has to be added to its
configuration, and the pooling switched on. As in that example, captions are padded to 128 tokens, the learning rate is
5e-5 without warm-up, and weight decay is 0.1. Two things are better than in the example: there are loader processes,
and a frozen image tower is in evaluation mode, without which its batch norms would follow the batches.

    cd WORKSPACE && PYTHONPATH=…/src:…/benchmarks …/.venv-benchmarks/bin/python -m peers.vision_text_peer --steps=10
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, Trainer, TrainerCallback, TrainingArguments, VisionTextDualEncoderModel

from diptych.data.prepared import PreparedSplit
from peers.clock import EpochClock, StepClock
from peers.pairs import CaptionPairs, Pair, collate, read_splits
from peers.recall import val_rsum
from peers.task import Result, Task, answer
from peers.towers import IMAGE_TOWER, TEXT_TOWER, keep_in_evaluation

MAX_LENGTH = 128
LEARNING_RATE = 5e-5
WEIGHT_DECAY = 0.1


class WatchedTrainer(Trainer):
    """Trainer with a record of its losses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[Tensor] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on one batch, and record the loss."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss


class StepTimes(TrainerCallback):
    """A callback that ticks a clock between the steps."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Tick before the first step."""
        self._clock.tick()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Tick after a step."""
        self._clock.tick()


class EpochTimes(TrainerCallback):
    """A callback that evaluates after each epoch, outside the clock, and stops when the budget is used up."""

    def __init__(self, clock: EpochClock, task: Task, val: PreparedSplit) -> None:
        self._clock = clock
        self._task = task
        self._val = val

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Start the clock."""
        self._clock.resume()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Evaluate, and stop the training if the budget is used up."""
        control = args[2]
        self._clock.pause()
        self._clock.record(evaluate(kwargs["model"], self._val, self._task))
        control.should_training_stop |= self._clock.is_over(self._task.budget)
        self._clock.resume()


def make_model(task: Task) -> VisionTextDualEncoderModel:
    """Build the towers with the weights of the workspace and new projections."""
    image_tower = AutoModel.from_pretrained(IMAGE_TOWER, do_pooling=True)
    image_tower.config.hidden_size = image_tower.timm_model.num_features
    text_tower = AutoModel.from_pretrained(TEXT_TOWER)
    model = VisionTextDualEncoderModel(vision_model=image_tower, text_model=text_tower)
    if task.frozen != "none":
        keep_in_evaluation(model.vision_model.requires_grad_(False))
    model.text_model.requires_grad_(task.frozen != "both")
    return model


def make_arguments(task: Task, output: str) -> TrainingArguments:
    """Return the arguments of the example; others have Trainer's defaults."""
    return TrainingArguments(
        output_dir=output,
        per_device_train_batch_size=task.batch_size,
        learning_rate=task.learning_rate or LEARNING_RATE,
        warmup_steps=0,
        weight_decay=WEIGHT_DECAY,
        remove_unused_columns=False,
        bf16=task.precision == "bf16",
        use_cpu=task.device == "cpu",
        max_steps=-1 if task.epochs else task.all_steps,
        num_train_epochs=max(1, task.epochs),
        dataloader_num_workers=task.workers,
        dataloader_persistent_workers=task.workers > 0,
        dataloader_drop_last=True,
        dataloader_pin_memory=task.device != "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=task.seed,
    )


def collate_for_trainer(pairs: list[Pair], length: int | None) -> dict[str, Any]:
    """Collate a batch as the example's collate_fn does."""
    batch = collate(pairs, length)
    return {
        "pixel_values": batch.pixels,
        "input_ids": batch.token_ids,
        "attention_mask": batch.mask,
        "return_loss": True,
    }


def perform(task: Task) -> Result:
    """Measure the speed of training, or train and evaluate after each epoch."""
    train, val = read_splits(task.params)
    length = MAX_LENGTH if task.text_length == "recommended" else None
    steps, epochs = StepClock(), EpochClock()
    with tempfile.TemporaryDirectory() as output:
        trainer = WatchedTrainer(
            model=make_model(task),
            args=make_arguments(task, output),
            train_dataset=CaptionPairs(train, task.pairs, task.seed),
            data_collator=partial(collate_for_trainer, length=length),
            callbacks=[EpochTimes(epochs, task, val) if task.epochs else StepTimes(steps)],
        )
        trainer.train()
    if task.epochs:
        return {"settings": describe(task), "epochs": epochs.epochs}
    return {
        "settings": describe(task),
        "pairs_per_second": steps.pairs_per_second(task.batch_size, task.warmup_steps),
        "losses": np.round(torch.stack(trainer.losses).tolist(), 4).tolist(),
    }


def evaluate(model: VisionTextDualEncoderModel, val: PreparedSplit, task: Task) -> float:
    """Return RSUM on `val`."""

    def embed_images(pixels: Tensor) -> Tensor:
        pooled: Tensor = model.get_image_features(pixels).pooler_output
        return pooled

    def embed_texts(token_ids: Tensor, mask: Tensor) -> Tensor:
        pooled: Tensor = model.get_text_features(token_ids, mask).pooler_output
        return pooled

    return val_rsum(model, embed_images, embed_texts, val, task)


def describe(task: Task) -> str:
    """Describe the measurement for the reader of the figures."""
    length = f"{MAX_LENGTH} tokens" if task.text_length == "recommended" else "padded to the longest"
    return (
        f"transformers {transformers.__version__}: VisionTextDualEncoderModel with Trainer, batch {task.batch_size}, "
        f"{length}, {task.precision}, {task.workers} workers, AdamW {task.learning_rate or LEARNING_RATE:g}, "
        f"weight decay {WEIGHT_DECAY:g}, linear without warm-up"
    )


if __name__ == "__main__":
    answer(__doc__, perform)

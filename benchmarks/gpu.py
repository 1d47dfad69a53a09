"""Speed of the reference preset on a GPU: training by precision, compilation and parts; embedding, re-ranking, loading.

    python benchmarks/gpu.py [--preset presets/coco-resnet50-bert.yaml] [--seconds 150] [--profile] [--quick]

It needs neither data nor weights: the preset's towers are built from their architectures' default configurations
(ResNet-50, BERT-base) with random weights. Images are noise, and captions are random tokens of realistic lengths, in
the format that `preprocess` writes. It trains with the project's Trainer, and sets torch up as the train stage does. It
leaves out what follows an epoch: validation and checkpoints; one checkpoint is timed separately. The first epoch warms
up; the figures are medians over the others. After --seconds no further row of the table is started.

--profile prints the operations that take most of the GPU's time over a few steps, the share of time in which the GPU
was idle, and the lines at which the host waited for it. Without a GPU, or with --quick, all sizes are tiny, to try the
script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate.state import AcceleratorState
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from diptych.config import Model, Params, Splits, Train, load_params
from diptych.data.inputs import Inputs
from diptych.data.prepared import FORMAT, Prepared
from diptych.model.device import choose_device, keep_freed_memory
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.retrieval.embedding import Embedded, _images, _texts, embed_split, inference
from diptych.retrieval.reranking import candidate_logits
from diptych.training.batches import Batch, BatchPlan, prefetched
from diptych.training.checkpoints import Checkpoints
from diptych.training.loop import Report, Setup, Trainer
from diptych.training.step import Losses

CAPTIONS = 5
"""Captions of an image."""
LENGTHS = (8, 20)
"""Tokens of a caption, special ones included: COCO's are 13 on average."""
SHARD = 1024
EPOCHS = 3
"""Measured epochs, after one that warms up."""
WARM_STEPS, PROFILED_STEPS = 4, 5


class Sizes(NamedTuple):
    """Sizes of the data."""

    images: int
    """Images of the train split: whole batches, since each size of a batch is compiled separately."""
    val: int
    side: int
    vocabulary: int


FULL = Sizes(images=16 * 128, val=512, side=224, vocabulary=30_522)
TINY = Sizes(images=4 * 8, val=16, side=32, vocabulary=500)


class Row(NamedTuple):
    """One training: its name, and its changes of the preset's `train`."""

    name: str
    changes: dict[str, Any]


LEARNING = {"compile": "never", "precision": "bf16"}
ROWS = [
    Row("all learn, bf16", {}),
    Row("all learn, float32 (TF32)", {"precision": "no"}),
    Row("image tower frozen, bf16", {"image_tower": {"lr_multiplier": 0.0}}),
    Row("all learn, bf16, no views", {"augmentation": None}),
    Row("all learn, bf16, no fusion", {"objectives": {"itm": 0.0}}),
    Row("all learn, bf16, compiled", {"compile": "always"}),
    Row("all learn, bf16, compiled, no views", {"compile": "always", "augmentation": None}),
    Row("image tower frozen, bf16, compiled", {"compile": "always", "image_tower": {"lr_multiplier": 0.0}}),
    Row("all learn, float32 (TF32), compiled", {"compile": "always", "precision": "no"}),
]


class NoCheckpoints(Checkpoints):
    """Checkpoints that write no files: two GB an epoch would measure the disk."""

    def save(self, state: dict[str, Any]) -> None:
        """Write nothing."""

    def save_best(self, weights: dict[str, torch.Tensor]) -> None:
        """Keep a reference, not a copy: the model continues with the same weights."""
        self._weights = weights

    def load_best(self) -> dict[str, torch.Tensor]:
        """Return the weights of the model."""
        return self._weights


class BareTrainer(Trainer):
    """Trainer without what follows an epoch; it calls `on_step`, if set, with the number of each step before it."""

    on_step: Callable[[int], None] | None = None

    def _validate(self) -> dict[str, float]:
        return {"val_rsum": 0.0, "val_mean_log_rank": 0.0}

    def _train_step(self, batch: Batch) -> Losses:
        if self.on_step:
            self.on_step(self._steps())
        return super()._train_step(batch)


def write_prepared(folder: Path, sizes: Sizes, max_tokens: int) -> Prepared:
    """Write noise in the format of `preprocess`; reading it is as much work as reading photographs."""
    random = np.random.default_rng(0)
    count = sizes.images + sizes.val
    (folder / "images").mkdir(parents=True)
    for start in range(0, count, SHARD):
        shape = (min(SHARD, count - start), sizes.side, sizes.side, 3)
        pixels = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        np.save(folder / "images" / f"images-{start // SHARD:05d}.npy", pixels)
    ids = np.arange(count)
    images = pd.DataFrame({"image_id": ids, "split": ["train"] * sizes.images + ["val"] * sizes.val})
    images = images.assign(sha256=[f"{i:064x}" for i in ids], shard=[f"images-{i // SHARD:05d}" for i in ids])
    images = images.assign(row=(ids % SHARD).astype(np.int32), file_name=ids.astype(str), source=ids.astype(str))
    images.to_parquet(folder / "images.parquet", index=False)
    captions = pd.DataFrame({"caption_id": np.arange(CAPTIONS * count), "image_id": ids.repeat(CAPTIONS)})
    captions.assign(caption="noise").to_parquet(folder / "captions.parquet", index=False)
    lengths = random.integers(LENGTHS[0], LENGTHS[1] + 1, len(captions))
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    np.save(folder / "tokens.npy", random.integers(5, sizes.vocabulary, offsets[-1]).astype(np.int32))
    np.save(folder / "offsets.npy", offsets)
    settings = {"format": FORMAT, "image_size": sizes.side, "resize": "stretch", "decoding": "0" * 64}
    settings |= {"max_tokens": max_tokens, "vocabulary_size": sizes.vocabulary, "pad_token_id": 0}
    (folder / "settings.json").write_text(json.dumps(settings))
    return Prepared(folder, Splits())


def from_scratch(model: Model, tiny: bool) -> Model:
    """Return the preset's model with towers of their architectures' default configurations."""
    image, text = model.image_tower, model.text_tower
    image_config = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]} if tiny else {}
    sizes = ("hidden_size", 32), ("num_hidden_layers", 4), ("num_attention_heads", 2), ("intermediate_size", 64)
    changes = {"pretrained": None, "revision": None}
    return Model.model_validate(
        model.model_dump()
        | {
            "dim": 32 if tiny else model.dim,
            "image_tower": image.model_dump() | changes | {"config": image_config},
            "text_tower": text.model_dump() | changes | {"config": dict(sizes) if tiny else {}},
        }
    )


class Bench:
    """The data, and measurements of models on it.

    Args:
        folder: the folder of the data and of the checkpoint that is timed.
    """

    def __init__(self, params: Params, sizes: Sizes, device: torch.device, folder: Path) -> None:
        tiny = sizes is TINY
        self.params = params
        self.model_settings = from_scratch(params.model, tiny)
        self.sizes = sizes
        self.device = device
        self.folder = folder
        self.batch_size = 8 if tiny else params.train.batch_size
        self.evaluation_batch = 16 if tiny else params.evaluate.batch_size
        self.prepared = write_prepared(folder / "prepared", sizes, params.preprocess.max_tokens)

    def settings(self, changes: dict[str, Any]) -> Train:
        """Return the preset's settings with the changes of a row, without patience and without epochs of the fusion."""
        always = {"epochs": 1 + EPOCHS, "batch_size": self.batch_size, "patience": None, "fusion_epochs": None}
        preset = self.params.train.model_dump()
        preset["image_tower"]["frozen_epochs"] = 0
        return Train.model_validate(preset | always | LEARNING | changes)

    def model(self) -> DualEncoder:
        """Build the model with random weights, always the same."""
        torch.manual_seed(self.params.seed)
        return build_model(self.model_settings, self.sizes.side, self.sizes.vocabulary, self.params.train.temperature)

    def trainer(self, changes: dict[str, Any], report: Report = lambda *_: None) -> BareTrainer:
        """Return a trainer of a new model."""
        # accelerate refuses a second precision in the same process, and has no public name to forget the first.
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
        return BareTrainer(
            self.model(),
            self.prepared.split("train"),
            self.prepared.split("val"),
            self.settings(changes),
            Setup(
                seed=self.params.seed,
                evaluation_batch=self.evaluation_batch,
                checkpoints=NoCheckpoints(self.folder / "checkpoints", {}),
                report=report,
                device=self.device,
            ),
        )

    def speed(self, row: Row) -> dict[str, float]:
        """Return the medians over the measured epochs.

        Also "warming_up", the seconds that the first epoch took longer than a median one, and "step_ms", the mean
        milliseconds of a step.
        """
        epochs: list[dict[str, float]] = []

        def report(values: dict[str, float], _: int) -> None:
            if "images_per_second" in values:
                epochs.append(values)

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.trainer(row.changes, report).run()
        figures = {name: statistics.median(epoch[name] for epoch in epochs[1:]) for name in epochs[0]}
        seconds = [self.sizes.images / epoch["images_per_second"] for epoch in (epochs[0], figures)]
        return figures | {
            "warming_up": seconds[0] - seconds[1],
            "step_ms": 1000 * self.batch_size / figures["images_per_second"],
        }

    def embedding(self, model: DualEncoder) -> tuple[float, float]:
        """Return images and captions embedded per second, of the train split in bf16."""
        inputs = Inputs(self.prepared.split("train"))
        lengths = inputs.split.token_lengths
        bar: Any = argparse.Namespace(update=lambda _: None)
        speeds = []
        with inference(model, self.device, "bf16"):
            for embed, items in ((_images, np.arange(len(inputs.split))), (_texts, np.argsort(lengths))):
                seconds = []
                for _ in range(1 + EPOCHS):
                    with timed(self.device) as elapsed:
                        for encoded in embed(model, inputs, items, self.evaluation_batch, self.device, bar):
                            encoded.pooled.float().cpu()
                    seconds += elapsed
                speeds.append(len(items) / statistics.median(seconds[1:]))
        return speeds[0], speeds[1]

    def embedded(self, model: DualEncoder) -> Embedded:
        """Return the embedded val split."""
        split, batch = self.prepared.split("val"), self.evaluation_batch
        return embed_split(model, split, batch_size=batch, device=self.device, precision="bf16")

    def reranking(self, model: DualEncoder) -> tuple[float, float]:
        """Return pairs scored by the fusion per second, and the seconds in all, with the search for candidates."""
        embedded, pairs = self.embedded(model), []
        hook = model.fusion.register_forward_hook(lambda _fusion, _arguments, fused: pairs.append(len(fused.itm)))
        seconds = []
        for _ in range(2):
            pairs.clear()
            with timed(self.device) as elapsed:
                candidate_logits(model, embedded, self.params.evaluate.top_k, device=self.device, precision="bf16")
            seconds += elapsed
        hook.remove()
        return sum(pairs) / min(seconds), min(seconds)

    def loading(self) -> float:
        """Return images loaded per second: batches are copied to the device, and nothing is computed with them."""
        split, train = self.prepared.split("train"), self.params.train
        plan = BatchPlan(split, batch_size=self.batch_size, captions_per_image=train.captions_per_image, seed=0)
        speeds = []
        for epoch in range(1 + EPOCHS):
            with timed(self.device) as elapsed:
                for batch in prefetched(plan.epoch(epoch), self.device):
                    batch.images.to(self.device, non_blocking=True)
            speeds.append(len(split) / elapsed[0])
        return statistics.median(speeds[1:])

    def checkpoint(self) -> tuple[float, float]:
        """Return the seconds that a checkpoint takes, and its GB."""
        trainer = self.trainer({})
        trainer.checkpoints = Checkpoints(self.folder / "checkpoint", {})
        with timed(self.device) as elapsed:
            trainer._save()  # noqa: SLF001 a checkpoint by itself
        return elapsed[0], sum(path.stat().st_size for path in (self.folder / "checkpoint").rglob("*.pt")) / 1e9


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Yield a list, and append the seconds that the block and its work on the device take."""
    elapsed: list[float] = []
    wait(device)
    started = time.perf_counter()
    yield elapsed
    wait(device)
    elapsed.append(time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_speeds(bench: Bench, rows: list[Row], deadline: float) -> None:
    """Print the table of trainings, each line as soon as it is measured."""
    head = f"{'training':36} {'images/s':>9} {'captions/s':>10} {'step ms':>8} {'waiting':>8} {'MFU':>6} {'GiB':>6}"
    print(f"\n{head} {'warm-up s':>10}")
    for row in rows:
        if time.monotonic() > deadline:
            print(f"{row.name:36} left out: no time")
            continue
        try:
            speed = bench.speed(row)
        except Exception as error:  # the other rows are still measured
            print(f"{row.name:36} {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        print(
            f"{row.name:36} {speed['images_per_second']:9.0f} {speed['captions_per_second']:10.0f} "
            f"{speed['step_ms']:8.1f} {speed['waiting_share']:8.1%} {speed['model_flops_utilization']:6.1%} "
            f"{speed['peak_memory_gib']:6.1f} {speed['warming_up']:10.1f}",
            flush=True,
        )
        torch.compiler.reset()


def print_others(bench: Bench) -> None:
    """Print the speeds of embedding, re-ranking, loading and a checkpoint."""
    model = bench.model().to(bench.device)
    images, captions = bench.embedding(model)
    print(
        f"\nembedding, bf16:  {images:9.0f} images/s  {captions:9.0f} captions/s, batches of {bench.evaluation_batch}"
    )
    pairs, seconds = bench.reranking(model)
    print(f"re-ranking, bf16: {pairs:9.0f} pairs/s   {seconds:9.1f} s for {bench.sizes.val} images in all")
    print(f"loading alone:    {bench.loading():9.0f} images/s  ({len(os.sched_getaffinity(0))} cores)")
    seconds, size = bench.checkpoint()
    print(f"a checkpoint:     {seconds:9.1f} s         {size:9.2f} GB", flush=True)


def print_profile(bench: Bench, changes: dict[str, Any]) -> None:
    """Print the operations that a few steps spend the GPU's time on, and those that the host waits for."""
    trainer = bench.trainer(changes | {"epochs": 1})
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    watch, first = profile(activities=activities), min(WARM_STEPS, trainer.plan.steps - 2)
    last = min(first + PROFILED_STEPS, trainer.plan.steps - 1)
    times: list[float] = []

    def on_step(step: int) -> None:
        if step in (first, last):
            wait(bench.device)
            if step == first:
                watch.start()
            times.append(time.perf_counter())
            if step == last:
                watch.stop()

    trainer.on_step = on_step
    trainer.run()
    steps, seconds = last - first, times[1] - times[0]
    events = watch.key_averages()
    order = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    print(f"\n{changes}, {steps} steps of {1000 * seconds / steps:.1f} ms:")
    print(events.table(sort_by=order, row_limit=25, max_name_column_width=70))
    busy = busy_seconds(watch)
    if busy:
        print(f"the GPU was idle for {1 - busy / seconds:.1%} of the time")
    for event in events:
        if event.key in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC", "cudaMemcpyAsync") or (
            "Synchronize" in event.key or event.key in ("aten::item", "aten::nonzero", "aten::_unique2")
        ):
            print(f"  {event.key:28} {event.count / steps:8.1f} a step, {event.cpu_time_total / steps / 1000:8.2f} ms")
    if bench.device.type == "cuda":
        print("lines at which the host waits for the GPU, times a step:")
        for line, count in waits(bench, changes).most_common(30):
            print(f"  {count:5d}  {line}")


def busy_seconds(watch: profile) -> float:
    """Return the seconds of the profile in which a kernel ran or a copy went on."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in watch.events()
        if event.device_type == DeviceType.CUDA
    )
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def waits(bench: Bench, changes: dict[str, Any]) -> Counter[str]:
    """Count the lines of Python at which the host waits for the GPU in one step of a training."""
    trainer, lines = bench.trainer(changes | {"epochs": 1}), Counter[str]()

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("warn" if step == 3 else "default")

    trainer.on_step = on_step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.run()
    torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            path = Path(warning.filename)
            lines["/".join(path.parts[-3:]) + f":{warning.lineno}"] += 1
        else:
            lines[f"(warning) {str(warning.message)[:150]}"] += 1
    return lines


def set_up(device: torch.device) -> None:
    """Set torch up as the train stage does."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")


def main() -> None:
    """Measure and print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", type=Path, default=Path("presets/coco-resnet50-bert.yaml"))
    parser.add_argument("--rows", type=int, nargs="*", help=f"rows of the table, 0 to {len(ROWS) - 1} (default: all)")
    parser.add_argument("--seconds", type=float, default=150.0, help="no row is started after these (default: 150)")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    device = choose_device("auto")
    set_up(device)
    sizes = TINY if options.quick or device.type != "cuda" else FULL
    rows = [ROWS[i] for i in options.rows] if options.rows is not None else ROWS
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {sizes}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(load_params(options.preset), sizes, device, Path(folder))
        if options.profile:
            print_profile(bench, {})
        print_others(bench)
        print_speeds(bench, rows, deadline)


if __name__ == "__main__":
    main()

"""The train stage by Ray Train: the cluster that RAY_ADDRESS names runs its processes, and replaces those that die.

`train.launch: [ray]` asks for it. Each process is the train stage itself. So a training that lost a process goes on
from its last checkpoint, and ends with the weights of one that did not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.config import Params
from diptych.data.cluster import Need, joined, place_count
from diptych.data.prepared import TABLES
from diptych.data.workers import TRIES
from diptych.errors import DiptychError, first_line
from diptych.files import remove
from diptych.project.workspace import Workspace

_WORKERS = "DIPTYCH_WORKERS"
"""Environment variable with the number of processes; by default one for each GPU of the cluster, or for each node."""
_PASSED_ON = ("AWS_", "DIPTYCH_", "HF_", "MLFLOW_")
"""First letters of the environment variables that the processes have too."""


def run(workspace: Workspace, params: Params) -> None:
    """Train as the train stage does, in the processes of a cluster.

    Raises:
        DiptychError: the cluster cannot be used, or the training fails, or loses processes `TRIES` times.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    storage = workspace.local / "ray-train"
    environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    with joined([workspace.prepared.absolute() / name for name in TABLES], shows_output=True) as ray:
        workers, need = _scale(ray, params)
        trainer = TorchTrainer(
            _train,
            train_loop_config={"root": str(workspace.root.absolute()), "environment": environment},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=need.gpus > 0,
                resources_per_worker={"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})},
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name="train", storage_path=str(storage), failure_config=FailureConfig(max_failures=TRIES - 1)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise DiptychError(
                f"The training by Ray failed: {_reason(error)}. Its checkpoints are kept: run again to go on."
            ) from None
        finally:
            remove(storage)


def _scale(ray: Any, params: Params) -> tuple[int, Need]:
    """Return the number of processes, and what each needs."""
    has_gpus = any(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    need = Need(cpus=1, gpus=1) if has_gpus and params.device in ("auto", "cuda") else Need(cpus=params.threads or 1)
    given = os.environ.get(_WORKERS)
    if given is not None and not (given.isdigit() and int(given)):
        raise DiptychError(f"{_WORKERS} is {given!r}; it is the number of processes that train, from 1.")
    places = place_count(ray, need)
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= need.cpus for node in ray.nodes())
    workers = int(given) if given else places if need.gpus else nodes
    if workers > places:
        raise DiptychError(f"{_WORKERS} is {workers}, and the cluster has room for {places} such processes.")
    return workers, need


def _train(settings: dict[str, Any]) -> None:
    """Run the train stage in a process of Ray Train, which has set its rank."""
    os.environ.update(settings["environment"])
    root = Path(settings["root"])
    os.chdir(root)
    from diptych.project.environment import prepare
    from diptych.project.params import read_params

    prepare(root)
    workspace = Workspace(root)
    from diptych.stages import train

    train.run(workspace, read_params(workspace))


def _reason(error: Any) -> str:
    """Return what went wrong in the first process that failed."""
    failures = getattr(error, "worker_failures", None) or {}
    return first_line(next(iter(failures.values()), error))

"""The train stage by Ray Train: the cluster that RAY_ADDRESS names runs its processes, and replaces those that die.

`train.launch: [ray]` asks for it. Each process is the train stage itself. So a training that lost a process goes on
from its last checkpoint, and ends with the weights of one that did not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.config import Params
from diptych.data.cluster import Need, alive, joined, passed_on, place_count
from diptych.data.prepared import TABLES
from diptych.data.workers import TRIES
from diptych.errors import DiptychError, first_line
from diptych.files import atomic_path, remove
from diptych.project.workspace import Workspace

_WORKERS = "DIPTYCH_WORKERS"
"""Environment variable with the number of processes; by default one for each GPU of the cluster, or for each node."""
_REFUSAL = "refusal.txt"
"""File with the message of an error that would come again."""


def run(workspace: Workspace, params: Params) -> None:
    """Train as the train stage does, in the processes of a cluster.

    Raises:
        DiptychError: the cluster cannot be used or has too little room, the stage refuses to train, or the training
            loses processes `TRIES` times.
    """
    folder = workspace.local / "ray-train"
    remove(folder)  # what a killed training left
    environment = passed_on()
    with joined([workspace.prepared.absolute() / name for name in TABLES], shows_output=True) as ray:
        workers, need = _scale(ray, params)
        try:
            # In the function, as settings of a run are shown to everybody on Ray's dashboard.
            _fit(lambda: _train(workspace.root.absolute(), environment), workers, need, folder.absolute())
            if (refusal := folder / _REFUSAL).exists():
                raise DiptychError(refusal.read_text(encoding="utf-8"))
        finally:
            remove(folder)


def _fit(train: Callable[[], None], workers: int, need: Need, storage: Path) -> None:
    """Run `train` in processes of Ray Train."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    # The class of the trainer depends on a variable of the environment, and its types are those of the older one.
    trainer: Any = TorchTrainer
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=need.gpus > 0,
        resources_per_worker={"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})},
        placement_strategy="SPREAD",
    )
    # Ray itself sets no limit, and waits for a node that is gone.
    failures = FailureConfig(max_failures=TRIES - 1, controller_failure_limit=TRIES - 1)
    config = RunConfig(name="train", storage_path=str(storage), failure_config=failures)
    try:
        trainer(train, scaling_config=scaling, run_config=config).fit()
    except TrainingFailedError as error:
        raise DiptychError(
            f"The training by Ray failed: {_reason(error)}. If a node is gone, start it again, or set {_WORKERS} below "
            f"{workers}. Run again then: it goes on from the last checkpoint."
        ) from None


def _scale(ray: Any, params: Params) -> tuple[int, Need]:
    """Return the number of processes, and what each needs."""
    resources = [node["Resources"] for node in alive(ray)]
    has_gpus = any(has.get("GPU", 0) for has in resources)
    need = Need(cpus=1, gpus=1) if has_gpus and params.device in ("auto", "cuda") else Need(cpus=params.threads or 1)
    given = os.environ.get(_WORKERS)
    if given is not None and not (given.isdigit() and int(given)):
        raise DiptychError(f"{_WORKERS} is {given!r}; it is the number of processes that train, from 1.")
    places = place_count(ray, need)
    nodes = sum(has.get("CPU", 0) >= need.cpus for has in resources)
    workers = int(given) if given else places if need.gpus else nodes
    if workers > places:
        raise DiptychError(f"{_WORKERS} is {workers}, and the cluster has room for {places} such processes.")
    return workers, need


def _train(root: Path, environment: dict[str, str]) -> None:
    """Run the train stage in a process of Ray Train, which has set its rank."""
    from diptych.project.environment import prepare
    from diptych.project.params import read_params
    from diptych.stages import train

    workspace = Workspace(root)
    refusal = workspace.local / "ray-train" / _REFUSAL
    if refusal.exists():
        return  # Ray begins again after any error, and this one would come again.
    os.environ.update(environment)
    os.chdir(root)
    prepare(root)
    try:
        train.run(workspace, read_params(workspace))
    except DiptychError as error:
        with atomic_path(refusal, shared=True) as temporary:
            temporary.write_text(str(error), encoding="utf-8")
        # The other processes may wait for this one: only an error ends them.
        raise


def _reason(error: Any) -> str:
    """Return what went wrong in the first process that failed."""
    failures = getattr(error, "worker_failures", None) or {}
    return first_line(next(iter(failures.values()), error))

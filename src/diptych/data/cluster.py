"""Work on shards by a Ray cluster, with the same results as on one machine.

RAY_ADDRESS names the cluster, as it does for Ray itself; nothing in params.yaml does, because where a thing is computed
must not change what it is. This machine is a node of the cluster (`ray start --address=…`). All nodes have the same
packages and see the project's folder under the same path.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from diptych.data.stored import find_stored
from diptych.data.workers import TRIES
from diptych.errors import DiptychError, first_line
from diptych.files import file_sha256, sources_sha256
from diptych.progress import has_rank

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_ADDRESS = "RAY_ADDRESS"
_QUEUED = 2
"""Ratio of the submitted tasks to those that the cluster can run at once, so that no worker waits for the next one."""
_SECONDS_TO_CONNECT = 5.0
_SECONDS_TO_LOOK = 30.0
"""Time after which the nodes are counted again while a task does not end."""
_SECONDS_TO_ANSWER = 60.0
"""Time that the nodes have to say what is installed on them; starting their first worker takes seconds."""
_LIBRARIES = ("imagehash", "numpy", "pillow", "scipy", "torch", "transformers")
"""Libraries that results depend on."""
_PASSED_ON = ("AWS_", "DIPTYCH_", "HF_", "MLFLOW_")
"""First letters of the environment variables that processes on the nodes have too."""
_DIPTYCH = Path(__file__).parents[1]
_MODULES = (
    *("config.py", "files.py", "remote.py", "retriever.py"),
    *("data", "model", "retrieval", "serving", "stages", "training", "validation"),
)
"""Modules and packages of diptych that results depend on."""


class Need(NamedTuple):
    """Cores and GPUs of a node that one task occupies."""

    cpus: int = 1
    gpus: int = 0


ONE_CORE = Need()


def need_of(device: str, threads: int) -> Need:
    """Return what a task occupies that computes with a device of this type: a GPU, or else `threads` cores."""
    return Need(gpus=1) if device == "cuda" else Need(cpus=threads)


_Facts = tuple[tuple[str, str], ...]
"""Packages with their versions, and input files with their hashes: all that must be the same on all nodes."""


def is_in_use() -> bool:
    """Return whether this process gives its work to a cluster.

    One of several that train together does not: the training may occupy the whole cluster already.
    """
    return bool(os.environ.get(_ADDRESS)) and not has_rank()


def describe(inputs: Sequence[Path]) -> str:
    """Join the cluster that RAY_ADDRESS names, and describe its nodes for people.

    Raises:
        DiptychError: it does not answer, or nodes differ from this one or do not see the same `inputs`.
    """
    with joined(inputs) as ray:
        resources = [node["Resources"] for node in alive(ray)]
        cpus, gpus = (round(sum(has.get(kind, 0) for has in resources)) for kind in ("CPU", "GPU"))
        return f"{len(resources)} node(s) with {cpus} CPU(s) and {gpus} GPU(s)"


def passed_on() -> dict[str, str]:
    """Return the environment variables that processes on the nodes are to have too, such as the credentials of S3."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def in_cluster(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    name: Callable[[Task], str],
    inputs: Sequence[Path],
    need: Need = ONE_CORE,
) -> Generator[Result]:
    """Yield `work(task)` for each task, in order, computed by the cluster that RAY_ADDRESS names.

    A task whose worker or node dies is begun again, `TRIES` times at most.

    Args:
        work: called on the nodes, with paths that are valid there.
        tasks: drawn as the cluster can run them.
        name: returns the name of a task for messages.
        inputs: absolute paths of files by which each node proves that it sees the same data.
        need: what a task occupies.

    Raises:
        DiptychError: the cluster does not answer, its nodes differ from this one, no node has what a task needs, or the
            workers of a task died each time.
        Exception: any error that `work` raises; tasks that have not begun are dropped.
    """
    queue = iter(tasks)
    with joined(inputs) as ray:
        submitted = _Submitted(ray, work, name, inputs, need)
        try:
            while submitted.fill(queue):
                yield submitted.first()
        finally:
            submitted.cancel()


class _Submitted(Generic[Task, Result]):
    """Tasks that were submitted, in order."""

    def __init__(
        self, ray: Any, work: Callable[[Task], Result], name: Callable[[Task], str], inputs: Sequence[Path], need: Need
    ) -> None:
        self._ray, self._name, self._need = ray, name, need
        # Ray itself would try again without end where memory runs out.
        self._remote = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_retries=0)(_run)
        # In arguments, as the settings of Ray's own environments are shown to everybody on its dashboard.
        self._settings = ray.put(work), tuple(inputs), _facts(inputs), passed_on()
        self._pending = deque[tuple[Task, Any]]()

    def fill(self, queue: Iterator[Task]) -> bool:
        """Submit as many tasks as keep all nodes busy; return whether there are any."""
        room = _QUEUED * place_count(self._ray, self._need) - len(self._pending)
        for task in islice(queue, max(0, room)):
            self._pending.append((task, self._submit(task)))
        return bool(self._pending)

    def first(self) -> Result:
        """Wait for the result of the first task, which leaves; begin it again where its worker or node died."""
        errors = self._ray.exceptions
        died = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError)
        for _ in range(TRIES):
            task, reference = self._pending[0]
            while not self._ray.wait([reference], timeout=_SECONDS_TO_LOOK)[0]:
                place_count(self._ray, self._need)
            try:
                result: Result = self._ray.get(reference)
            except died as error:
                last = error
                _log.warning("The worker of %s died, so it is begun again: %s.", self._name(task), first_line(error))
                self._pending[0] = task, self._submit(task)
            except errors.RayTaskError as error:
                if isinstance(error.cause, DiptychError | OSError):
                    raise error.cause from None
                raise  # its text has the traceback of the node
            except errors.RayError as error:
                raise DiptychError(f"The cluster failed at {self._name(task)}: {first_line(error)}.") from None
            else:
                self._pending.popleft()
                return result
        raise DiptychError(
            f"The worker of {self._name(task)} died {TRIES} times ({first_line(last)}). Where memory ran out, start "
            "nodes with fewer CPUs (`ray start --num-cpus`); Ray's logs of the node say more."
        )

    def cancel(self) -> None:
        """Drop the tasks that have not ended."""
        for _, reference in self._pending:
            self._ray.cancel(reference)

    def _submit(self, task: Task) -> Any:
        work, inputs, facts, environment = self._settings
        # In a list Ray passes the reference on, and a worker gets the work itself once.
        return self._remote.remote([work], inputs, facts, environment, task)


@contextmanager
def joined(inputs: Sequence[Path], *, shows_output: bool = False) -> Iterator[Any]:
    """Give the module `ray`, connected to the cluster that RAY_ADDRESS names, whose nodes are as this one.

    `inputs` are as for `in_cluster`; with `shows_output` this process prints what those of the nodes print.

    Raises:
        DiptychError: no cluster is named or answers, or its nodes differ from this one.
    """
    address = os.environ.get(_ADDRESS)
    if not address:
        raise DiptychError(f"{_ADDRESS} names no cluster: start one with `ray start --head`, and set it to HOST:PORT.")
    with _connected(address, shows_output) as ray:
        _refuse_other_nodes(ray, inputs)
        yield ray


@contextmanager
def _connected(address: str, shows_output: bool) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise DiptychError(
            f"{_ADDRESS} is {address}, but Ray is not installed: pip install 'diptych[cluster]'."
        ) from None
    _refuse_silence(address)
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, namespace="diptych", log_to_driver=shows_output, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others, by the version of Ray
        raise DiptychError(
            f"{_ADDRESS} is {address}, and no cluster can be joined there: {str(error).strip()} Start this machine's "
            "node with `ray start --address=HOST:PORT`, by the same Python, or unset the variable to work here alone."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Raise a DiptychError if nothing listens at the address: Ray itself waits for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto" and "local" are Ray's own words
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise DiptychError(
            f"{_ADDRESS} is {address}, where nothing answers ({error}). Start the cluster with `ray start --head`, or "
            "unset the variable to work on this machine alone."
        ) from None


def _refuse_other_nodes(ray: Any, inputs: Sequence[Path]) -> None:
    """Raise a DiptychError if a node has other packages than this one, or does not see the same inputs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    expected = _facts(inputs)
    ask = ray.remote(num_cpus=0, max_retries=0)(_facts)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(inputs): node
        for node in alive(ray)
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
    for reference in answered:
        where = asked[reference]["NodeManagerHostname"]
        try:
            _refuse_difference(expected, ray.get(reference), where)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            _log.warning("The node %s is gone.", where)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            raise DiptychError(
                f"The node {where} cannot run diptych: {first_line(cause)}. Install the same packages there, and start "
                "its node by the Python that has them."
            ) from None
    for reference in silent:
        _log.warning("The node %s does not answer yet.", asked[reference]["NodeManagerHostname"])


def _facts(inputs: Sequence[Path]) -> _Facts:
    facts = {"python": platform.python_version(), "diptych": sources_sha256(_DIPTYCH, _MODULES)[:12]}
    for name in _LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "missing"
    for path in inputs:
        try:
            facts[str(path)] = file_sha256(path)
        except OSError as error:
            stored = find_stored(path)
            facts[str(path)] = stored.key if stored else error.strerror or str(error)
    return tuple(facts.items())


def _refuse_difference(expected: _Facts, found: _Facts, where: str) -> None:
    there = dict(found)
    for name, here in expected:
        if there.get(name) == here:
            continue
        if os.sep in name:
            raise DiptychError(
                f"The node {where} does not see the same {name} as the one that the work was started on "
                f"({there.get(name)}). All nodes need the project's folder under this path, on storage that they share."
            )
        raise DiptychError(
            f"The node {where} has {name} {there.get(name)}, and the one that the work was started on has {here}, so "
            "their results could differ. Install the same packages on all nodes."
        )


def alive(ray: Any) -> list[dict[str, Any]]:
    """Return Ray's descriptions of the nodes that are there."""
    return [node for node in ray.nodes() if node["Alive"]]


def place_count(ray: Any, need: Need) -> int:
    """Return the number of tasks with this need that the cluster can run at once.

    Raises:
        DiptychError: it can run none.
    """
    places = 0
    for node in alive(ray):
        has = node["Resources"]
        counts = [int(has.get(kind, 0) // amount) for kind, amount in zip(("CPU", "GPU"), need, strict=True) if amount]
        places += min(counts, default=0)
    if not places:
        raise DiptychError(
            f"No node of the cluster has {need.cpus} CPU(s) and {need.gpus} GPU(s), which a task needs: add such "
            "nodes. `threads` in params.yaml is the number of CPUs for features and indexes."
        )
    return places


def _run(work: list[Any], inputs: tuple[Path, ...], expected: _Facts, environment: Mapping[str, str], task: Any) -> Any:
    """Do the work on a node, whose name is added to what goes wrong there."""
    host = socket.gethostname()
    os.environ.update(environment)
    _check_once(inputs, expected, host)
    try:
        return _received(work[0])(task)
    except DiptychError as error:
        raise DiptychError(f"{error} (on the node {host})") from None
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} on the node {host}", error.filename) from None


@lru_cache(maxsize=1)
def _check_once(inputs: tuple[Path, ...], expected: _Facts, host: str) -> None:
    """Refuse the work of a process that differs: its node may have joined after the others were asked."""
    _refuse_difference(expected, _facts(inputs), host)


@lru_cache(maxsize=1)
def _received(reference: Any) -> Any:
    """Return what is to be done, which a process keeps for the next task."""
    import ray

    return ray.get(reference)

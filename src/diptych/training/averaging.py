"""Means of gradients over the processes, which travel while the backward pass still computes others.

Buckets and hooks are as in DistributedDataParallel (Li et al., VLDB 2020, section 3.2). That itself doesn't fit: a step
in chunks has several backward passes, and the weights that learn change between epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakMethod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.model.gathering import world_size

BUCKET_BYTES = 2**23
"""Size of the buckets in which gradients travel: large enough that the network's rate counts and not its delay, and
small enough that the first one leaves early.
"""


class GradientAverage:
    """Means over the processes of the gradients of those of `parameters` that learn.

    Every process has the same weights and calls this at the same points. A process that is alone does nothing. Where
    the backward pass communicates too, as batch norms do, the processes have gradients of the same weights: otherwise
    they would not communicate in the same order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._learning: list[nn.Parameter] = []
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[int, _Bucket] = {}
        """Bucket of each parameter, by its identity."""
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._is_last_pass = False

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Send gradients as they become complete: no backward pass after this context adds to those that it makes."""
        if world_size() == 1:
            yield
            return
        self._prepare()
        self._is_last_pass = True
        try:
            yield
        except BaseException:
            # What was sent belongs to a step that is not finished.
            self._learning = []
            raise
        finally:
            self._is_last_pass = False

    def finish(self) -> None:
        """Replace every gradient by its mean over the processes; a weight without a gradient counts as zero."""
        if world_size() == 1:
            return
        self._prepare()
        for bucket in self._buckets:
            bucket.send()
        for bucket in self._buckets:
            bucket.receive()

    def _prepare(self) -> None:
        """Make the buckets of the weights that learn, and their hooks, unless they are there."""
        learning = [parameter for parameter in self._parameters if parameter.requires_grad]
        if self._buckets and list(map(id, learning)) == list(map(id, self._learning)):
            return
        for hook in self._hooks:
            hook.remove()
        self._learning = learning
        # The gradients of the last layers are complete first.
        self._buckets = _buckets(reversed(learning))
        self._bucket_of = {id(parameter): bucket for bucket in self._buckets for parameter in bucket.parameters}
        # The garbage collector does not see what a hook refers to, so it would never free this.
        send = WeakMethod(self._send)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(lambda tensor: (call := send()) and call(tensor))
            for parameter in learning
        ]

    def _send(self, parameter: Tensor) -> None:
        """Send the buckets that are complete with the gradient of `parameter`."""
        if not self._is_last_pass:
            return
        self._bucket_of[id(parameter)].missing.remove(id(parameter))
        for bucket in self._buckets:
            # All processes have to send the same ones in the same order.
            if bucket.missing:
                return
            bucket.send()


class _Bucket:
    """Parameters of one dtype, whose gradients travel as one tensor."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.nbytes = 0
        self.missing: set[int] = set()
        """Identities of the parameters whose gradients are not complete."""
        self._sent: tuple[Tensor, dist.Work] | None = None

    def add(self, parameter: nn.Parameter) -> None:
        self.parameters.append(parameter)
        self.nbytes += parameter.nbytes
        self.missing.add(id(parameter))

    def send(self) -> None:
        """Send the gradients, if that has not been done."""
        if self._sent is None:
            flat = torch.cat([gradient.flatten() for gradient in self._gradients()])
            self._sent = flat, dist.all_reduce(flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sums over the processes, and replace the gradients by the means."""
        assert self._sent is not None
        flat, work = self._sent
        work.wait()
        means = flat.div_(world_size()).split([parameter.numel() for parameter in self.parameters])
        for parameter, gradient, mean in zip(self.parameters, self._gradients(), means, strict=True):
            if gradient.is_contiguous():
                parameter.grad = mean.view_as(gradient)
            else:  # an optimizer wants gradients in the memory format of the weights
                gradient.copy_(mean.view_as(gradient))
        self.missing.update(map(id, self.parameters))
        self._sent = None

    def _gradients(self) -> list[Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


def _buckets(parameters: Iterable[nn.Parameter]) -> list[_Bucket]:
    """Cut `parameters` into buckets in their order, each of one dtype and of about `BUCKET_BYTES`."""
    buckets: list[_Bucket] = []
    for parameter in parameters:
        last = buckets[-1] if buckets else None
        if last is None or last.nbytes >= BUCKET_BYTES or last.parameters[-1].dtype != parameter.dtype:
            buckets.append(last := _Bucket())
        last.add(parameter)
    return buckets

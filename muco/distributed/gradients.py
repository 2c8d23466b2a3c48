"""Sum gradients over the processes, in buckets, while the last backward pass of a step still runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_NUMEL = 1 << 25
"""Elements of the gradients that are summed in one call."""


class GradientSum:
    """Replaces the gradients of weights by their sums over the processes, once.

    Where no process has a gradient, it stays None, as in a run of one process. The exchanges of all buckets
    are started in one order, which is the same in all processes and steps.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """Take the weights in the order in which backward finishes their gradients; see `backward_order`."""
        self._buckets = _buckets(weights)
        self._missing = [len(bucket) for bucket in self._buckets]
        self._exchanges: list[_Exchange] = []

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Start the exchange of a bucket within the block, once backward has finished its gradients.

        The block holds the last backward pass of the step. At its end the exchanges that are left start.
        """
        with ExitStack() as hooks:
            for index, bucket in enumerate(self._buckets):
                for weight in bucket:
                    hook = weight.register_post_accumulate_grad_hook(
                        lambda _, index=index: self._count(index)
                    )
                    hooks.enter_context(hook)
            yield
        self._start_all()

    def finish(self) -> None:
        """Wait for the exchanges; start those that were not."""
        self._start_all()
        for exchange in self._exchanges:
            exchange.finish()

    def _count(self, index: int) -> None:
        assert index >= len(self._exchanges), "a gradient changed after its exchange began"
        self._missing[index] -= 1
        while len(self._exchanges) < len(self._buckets) and not self._missing[len(self._exchanges)]:
            self._start()

    def _start_all(self) -> None:
        while len(self._exchanges) < len(self._buckets):
            self._start()

    def _start(self) -> None:
        self._exchanges.append(_Exchange.start(self._buckets[len(self._exchanges)]))


@dataclass(frozen=True)
class _Exchange:
    """The sum of one bucket, which may still run."""

    bucket: Sequence[nn.Parameter]
    flat: Tensor
    """The gradients, then for each weight how many processes have one."""
    work: dist.Work

    @classmethod
    def start(cls, bucket: Sequence[nn.Parameter]) -> _Exchange:
        """Begin the sum. The weights' gradients become views of the buffer that is summed."""
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        has_gradient = torch.tensor([float(each.grad is not None) for each in bucket])
        flat = torch.cat([each.flatten() for each in gradients] + [has_gradient.to(gradients[0])])
        sizes = [each.numel() for each in bucket]
        for weight, gradient in zip(bucket, flat[: -len(bucket)].split(sizes), strict=True):
            weight.grad = gradient.view_as(weight)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        return cls(bucket, flat, work)

    def finish(self) -> None:
        self.work.wait()
        counts = self.flat[-len(self.bucket) :].tolist()
        for weight, count in zip(self.bucket, counts, strict=True):
            if not count:
                weight.grad = None


def backward_order(module: nn.Module) -> list[nn.Parameter]:
    """Return a module's weights roughly as backward reaches them: layers, the last one first, then others.

    Among the others are embeddings, which backward reaches last.
    """
    stacks = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    in_layers = list(dict.fromkeys(weight for stack in stacks for weight in stack.parameters()))
    ids = {id(weight) for weight in in_layers}
    return [*reversed(in_layers), *(each for each in module.parameters() if id(each) not in ids)]


def _buckets(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split weights into groups of one dtype and device, of at most `_BUCKET_NUMEL` elements."""
    buckets: list[list[nn.Parameter]] = []
    numel = 0
    for weight in weights:
        same = buckets and (buckets[-1][0].dtype, buckets[-1][0].device) == (weight.dtype, weight.device)
        if not same or numel + weight.numel() > _BUCKET_NUMEL:
            buckets.append([])
            numel = 0
        buckets[-1].append(weight)
        numel += weight.numel()
    return buckets

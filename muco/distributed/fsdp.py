"""Weights in shards (FSDP2): each process keeps its part of them and of the optimizer's state.

For the passes of a step the weights are whole in every process, so no pass waits for another process, however
many chunks each has; the gradients are summed and split again once, after the last chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from muco.config.recipe import Recipe
from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError
from muco.distributed.ranks import Ranks
from muco.training.optimizer import Optimizers


def sharding_wished() -> bool:
    """Say whether the launcher asks for shards: `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        MucoError: it asks for FSDP in a way that muco does not have.
    """
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise MucoError(
            "ACCELERATE_USE_FSDP is set: muco shards weights by FSDP2 alone; add --fsdp_version 2"
        )
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _is_set(name):
            raise MucoError(f"{name} is set: muco's shards do not have it; launch without it")
    return True


def check_launch(recipe: Recipe) -> None:
    """Raise where the launcher asks for shards and the recipe for what needs whole weights.

    Raises:
        MucoError: the optimizer is Muon.
    """
    if sharding_wished() and recipe.train.optimizer == "muon":
        raise MucoError(
            "train.optimizer: muon orthogonalizes whole matrices, and FSDP splits them; take adamw, or "
            "launch without FSDP"
        )


@dataclass(frozen=True)
class Shards:
    """The modules whose weights are in shards, inner ones first; none where every weight is whole."""

    modules: tuple[FSDPModule, ...] = ()

    @classmethod
    def of(cls, encoder: TurnEncoder, ranks: Ranks, device: torch.device) -> Shards:
        """Split what the backbone lets be split; all processes hold the same weights.

        Raises:
            MucoError: the backbone names nothing to split.
        """
        modules = list(encoder.backbone.shardable_modules())
        if not modules:
            raise MucoError(
                f"backbone {type(encoder.backbone).__name__} cannot be sharded; launch without FSDP"
            )
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for module in modules:
            sharded = fully_shard(module, mesh=mesh, reshard_after_forward=False)
            sharded.set_requires_gradient_sync(False)
            sharded.set_reshard_after_backward(False)
        return cls(tuple(each for each in modules if isinstance(each, FSDPModule)))

    def gather(self) -> None:
        """Make the weights whole in every process."""
        for module in self.modules:
            module.unshard()

    def release(self, encoder: nn.Module) -> None:
        """Split the weights again, each part with the sum of its gradients over the processes.

        A weight that no process has a gradient for keeps none.
        """
        if not self.modules:
            return
        gradients = {name: weight.grad for name, weight in encoder.named_parameters()}
        for weight in encoder.parameters():
            weight.grad = None
        for module in self.modules:
            module.reshard()
        split: dict[str, DTensor] = {}
        for name, weight in encoder.named_parameters():
            if not isinstance(weight, DTensor):
                weight.grad = gradients.pop(name)
            elif weight.requires_grad:
                split[name] = weight
        for name in _used_anywhere(gradients, split):
            weight, mine = split[name], gradients.pop(name)
            if mine is None:
                mine = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
            partial = DTensor.from_local(mine, weight.device_mesh, [Partial("sum")])
            weight.grad = partial.redistribute(placements=weight.placements)

    @contextmanager
    def saved_whole(self, *, keep: bool) -> Iterator[None]:
        """Let the modules' state dicts hold whole weights, on the host.

        Args:
            keep: whether this process saves them; all processes enter.
        """
        whole: dict[int, Tensor] = {}
        for weight in dict.fromkeys(weight for module in self.modules for weight in _weights(module)):
            if isinstance(weight, DTensor):
                full = weight.full_tensor().detach()
                if keep:
                    whole[id(weight)] = full.cpu()

        def put(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
            for name, weight in module.named_parameters():
                if id(weight) in whole:
                    state[prefix + name] = whole[id(weight)]

        hooks = [module.register_state_dict_post_hook(put) for module in self.modules]  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def whole_states(states: Any, *, keep: bool) -> Any:
    """Return an optimizer's states with whole tensors, on the host, for one process to save.

    Args:
        states: of this process; all processes call this.
        keep: whether this process saves them; where not, shards become None.
    """
    if isinstance(states, DTensor):
        full = states.full_tensor()
        return full.cpu() if keep else None
    if isinstance(states, Mapping):
        return {name: whole_states(each, keep=keep) for name, each in states.items()}
    if isinstance(states, list):
        return [whole_states(each, keep=keep) for each in states]
    return states


def split_states(optimizers: Optimizers, states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the states that `whole_states` gave, split as the weights are."""
    found = []
    for (part, _), state in zip(optimizers.parts, states, strict=True):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        split = {place: _split_like(weights[place], each) for place, each in state["state"].items()}
        found.append({**state, "state": split})
    return found


def clip_gradients(weights: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to a norm, over whole weights and shards; return what the norm was."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    shards = [each.to_local() for each in gradients if isinstance(each, DTensor)]
    if not shards:
        return nn.utils.clip_grad_norm_(weights, max_norm)
    whole = [each for each in gradients if not isinstance(each, DTensor)]
    squares = nn.utils.get_total_norm(shards).square()
    dist.all_reduce(squares)
    norm = (squares + nn.utils.get_total_norm(whole).to(squares).square()).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for each in whole + shards:
        each.mul_(scale.to(each))
    return norm


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def _weights(module: FSDPModule) -> Iterable[nn.Parameter]:
    assert isinstance(module, nn.Module)
    return module.parameters()


def _used_anywhere(gradients: Mapping[str, Tensor | None], split: Mapping[str, DTensor]) -> list[str]:
    """Return the names of the split weights that any process has a gradient for."""
    if not split:
        return []
    device = next(iter(split.values())).device
    used = torch.tensor([float(gradients[name] is not None) for name in split], device=device)
    dist.all_reduce(used)
    return [name for name, number in zip(split, used.tolist(), strict=True) if number]


def _split_like(weight: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one weight, its tensors of the weight's shape split as the weight is."""
    if not isinstance(weight, DTensor):
        return dict(state)
    return {
        name: distribute_tensor(
            each.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
        if isinstance(each, Tensor) and each.shape == weight.shape
        else each
        for name, each in state.items()
    }

"""Sharded weights (FSDP2): each process keeps a shard of the weights and of the optimizer's state.

During a step every process holds the full weights, so no pass waits for another process, however many chunks
each has. After the last chunk the gradients are summed and sharded once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.optim import Optimizer

from muco.config.recipe import Recipe
from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError
from muco.distributed.ranks import Ranks


def fsdp_requested() -> bool:
    """Return whether the launcher asks for FSDP2; raise MucoError for FSDP1 and unsupported options."""
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise MucoError("ACCELERATE_USE_FSDP is set: muco supports FSDP2 only; add --fsdp_version 2")
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _is_set(name):
            raise MucoError(f"{name} is set: muco does not support it; launch without it")
    return True


def check_launch(recipe: Recipe) -> None:
    """Raise MucoError if the recipe cannot run as it is launched: Muon needs full matrices."""
    if fsdp_requested() and recipe.train.optimizer == "muon":
        raise MucoError(
            "train.optimizer: muon orthogonalizes full matrices, and FSDP shards them; take adamw, or "
            "launch without FSDP"
        )


@dataclass(frozen=True)
class Shards:
    """The modules whose weights are sharded, inner ones first; empty without FSDP."""

    modules: tuple[FSDPModule, ...] = ()

    @classmethod
    def of(cls, encoder: TurnEncoder, ranks: Ranks, device: torch.device) -> Shards:
        """Shard the modules that the backbone allows; all processes must hold the same weights."""
        modules = list(encoder.backbone.shardable_modules())
        if not modules:
            name = type(encoder.backbone).__name__
            raise MucoError(f"backbone {name} cannot be sharded; launch without FSDP")
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for module in modules:
            sharded = fully_shard(module, mesh=mesh, reshard_after_forward=False)
            sharded.set_requires_gradient_sync(False)
            sharded.set_reshard_after_backward(False)
        return cls(tuple(each for each in modules if isinstance(each, FSDPModule)))

    def unshard(self) -> None:
        """Give every process the full weights."""
        for module in self.modules:
            module.unshard()

    def reshard(self, encoder: nn.Module) -> None:
        """Shard the weights again; a shard's gradient is the sum over the processes.

        Where no process has a gradient, it stays None.
        """
        if not self.modules:
            return
        gradients = {name: weight.grad for name, weight in encoder.named_parameters()}
        for weight in encoder.parameters():
            weight.grad = None
        for module in self.modules:
            module.reshard()
        sharded: dict[str, DTensor] = {}
        for name, weight in encoder.named_parameters():
            if not isinstance(weight, DTensor):
                weight.grad = gradients.pop(name)
            elif weight.requires_grad:
                sharded[name] = weight
        for name in _with_gradient_anywhere(gradients, sharded):
            weight, gradient = sharded[name], gradients.pop(name)
            if gradient is None:
                gradient = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
            partial = DTensor.from_local(gradient, weight.device_mesh, [Partial("sum")])
            weight.grad = partial.redistribute(placements=weight.placements)

    @contextmanager
    def full_state_dicts(self, *, keep: bool) -> Iterator[None]:
        """Within the block, the modules' state dicts hold the full weights, on the host.

        All processes must enter the block; `keep` says whether this one saves the weights.
        """
        modules = [module for module in self.modules if isinstance(module, nn.Module)]
        full_weights: dict[int, Tensor] = {}
        for weight in dict.fromkeys(weight for module in modules for weight in module.parameters()):
            if isinstance(weight, DTensor):
                full = weight.full_tensor().detach()
                if keep:
                    full_weights[id(weight)] = full.cpu()

        def replace(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
            for name, weight in module.named_parameters():
                if id(weight) in full_weights:
                    state[prefix + name] = full_weights[id(weight)]

        hooks = [module.register_state_dict_post_hook(replace) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def full_states(states: Any, *, keep: bool) -> Any:
    """Return an optimizer's states with full tensors on the host for shards, or None if not `keep`.

    All processes must call this; `keep` says whether this one saves the states.
    """
    if isinstance(states, DTensor):
        full = states.full_tensor()
        return full.cpu() if keep else None
    if isinstance(states, Mapping):
        return {name: full_states(each, keep=keep) for name, each in states.items()}
    if isinstance(states, list):
        return [full_states(each, keep=keep) for each in states]
    return states


def shard_states(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict of full tensors with its tensors sharded as the optimizer's weights are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sharded = {index: _shard_like(weights[index], each) for index, each in state["state"].items()}
    return {**state, "state": sharded}


def clip_gradients(weights: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients, full and sharded, to at most `max_norm`; return their norm before that."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    shards = [each.to_local() for each in gradients if isinstance(each, DTensor)]
    if not shards:
        return nn.utils.clip_grad_norm_(weights, max_norm)
    full = [each for each in gradients if not isinstance(each, DTensor)]
    squares = nn.utils.get_total_norm(shards).square()
    dist.all_reduce(squares)
    norm = (squares + nn.utils.get_total_norm(full).to(squares).square()).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for each in full + shards:
        each.mul_(scale.to(each))
    return norm


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def _with_gradient_anywhere(
    gradients: Mapping[str, Tensor | None], sharded: Mapping[str, DTensor]
) -> list[str]:
    """Return the names of the sharded weights that any process has a gradient for."""
    if not sharded:
        return []
    device = next(iter(sharded.values())).device
    counts = torch.tensor([float(gradients[name] is not None) for name in sharded], device=device)
    dist.all_reduce(counts)
    return [name for name, count in zip(sharded, counts.tolist(), strict=True) if count]


def _shard_like(weight: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one weight; tensors of the weight's shape are sharded as the weight is."""
    if not isinstance(weight, DTensor):
        return dict(state)

    def shard(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        moved = value.to(weight.device)
        return distribute_tensor(moved, weight.device_mesh, weight.placements, src_data_rank=None)

    return {name: shard(value) for name, value in state.items()}

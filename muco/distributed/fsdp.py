"""Sharded weights (FSDP2): each process keeps a shard of the weights and of the optimizer's state.

`train.gather_weights: step`: during a step every process holds the full weights, so no pass waits for another
process, however many chunks each has. After the last chunk the gradients are summed and sharded once.

`train.gather_weights: layer`: each layer is gathered when a pass reaches it and sharded again after it. All
processes must call the encoder equally often. Gradients stay whole until the last chunk, whose backward pass
sums and shards them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
    by_layer: bool = False
    """Whether a step gathers one layer at a time, not all weights."""

    @classmethod
    def of(
        cls, encoder: TurnEncoder, ranks: Ranks, device: torch.device, *, by_layer: bool = False
    ) -> Shards:
        """Shard the modules that the backbone allows; all processes must hold the same weights."""
        modules = list(encoder.backbone.shardable_modules())
        if not modules:
            name = type(encoder.backbone).__name__
            raise MucoError(f"backbone {name} cannot be sharded; launch without FSDP")
        if by_layer:
            _refuse_frozen_layers(encoder, modules)
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        sharded = {weight for module in modules for weight in module.parameters()}
        whole = set(encoder.parameters()) - sharded
        for module in modules:
            each = fully_shard(module, mesh=mesh, reshard_after_forward=by_layer)
            each.set_requires_gradient_sync(False)
            each.set_reshard_after_backward(by_layer)
            # Gradients are summed, not averaged.
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)
        # FSDP needs one root that is called first; it holds no shards of its own.
        fully_shard(encoder, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
        return cls(tuple(each for each in modules if isinstance(each, FSDPModule)), by_layer)

    @contextmanager
    def step(self, encoder: nn.Module) -> Iterator[None]:
        """Hold the full weights within the block, then sum and shard the gradients; by layer, do neither."""
        if self.by_layer:
            yield
            return
        self.unshard()
        yield
        self.reshard(encoder)

    @contextmanager
    def reducing(self) -> Iterator[None]:
        """By layer: sum and shard the gradients of each layer in the backward pass within the block."""
        if not self.by_layer:
            yield
            return
        for module in self.modules:
            module.set_requires_gradient_sync(True, recurse=False)
        yield
        for module in self.modules:
            module.set_requires_gradient_sync(False, recurse=False)

    def bytes_held(self, weight: Tensor) -> int:
        """Return the bytes of a weight that this process holds during a whole step."""
        return weight.to_local().nbytes if self.by_layer and isinstance(weight, DTensor) else weight.nbytes

    def unshard(self) -> None:
        """Give every process the full weights until `reshard`."""
        for module in self.modules:
            module.set_reshard_after_forward(False, recurse=False)
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
            module.set_reshard_after_forward(self.by_layer, recurse=False)
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

        with ExitStack() as hooks:
            for module in modules:
                hooks.enter_context(module.register_state_dict_post_hook(replace))
            yield


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


def _refuse_frozen_layers(encoder: TurnEncoder, modules: Sequence[nn.Module]) -> None:
    """Raise MucoError if no weight of a layer is trained, and image features are.

    Whether backward passes through that layer would depend on the images of a process's chunks.
    """
    layers = [module for module in modules if any(True for _ in module.children())]
    is_frozen = any(not any(weight.requires_grad for weight in each.parameters()) for each in layers)
    if is_frozen and any(weight.requires_grad for weight in encoder.backbone.image_parameters()):
        raise MucoError(
            "train.gather_weights: layer needs a trained weight in each layer of the language model, because "
            "the vision tower is trained too; freeze it, or take `gather_weights: step`"
        )


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

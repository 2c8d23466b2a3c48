"""The optimizers of a run, AdamW or Muon with AdamW, and the schedule of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from muco.config.recipe import TrainSettings
from muco.core.errors import MucoError
from muco.distributed.fsdp import full_states, shard_states
from muco.training.muon import PreciseMuon

_SCALE = "learning_rate_scale"
"""Key of a group of weights; absent where it is 1."""


@dataclass(frozen=True)
class Optimizers:
    """One or two optimizers that step together."""

    settings: TrainSettings
    parts: tuple[tuple[Optimizer, float], ...]
    """Each optimizer with its peak learning rate."""

    def weights(self) -> list[nn.Parameter]:
        """Return the trained weights."""
        groups = [group for optimizer, _ in self.parts for group in optimizer.param_groups]
        return [weight for group in groups for weight in group["params"]]

    def state_bytes(self) -> int:
        """Return the bytes of the optimizers' states after a step: two numbers a weight, with Muon one."""
        return sum(
            (1 if isinstance(optimizer, PreciseMuon) else 2)
            * sum(weight.nbytes for weight in group["params"])
            for optimizer, _ in self.parts
            for group in optimizer.param_groups
        )

    def step(self, step: int) -> None:
        """Apply the gradients as update `step`, counted from 0, and clear them."""
        share = learning_rate_share(self.settings, step)
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * share * group.get(_SCALE, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self, *, keep: bool) -> list[dict[str, Any]]:
        """Return the state of each optimizer, with full tensors also under FSDP; see `full_states`."""
        return [full_states(optimizer.state_dict(), keep=keep) for optimizer, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Load the states that `state_dict` returned."""
        for (optimizer, _), state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(shard_states(optimizer, state))


def make_optimizers(modules: nn.Module, settings: TrainSettings) -> Optimizers:
    """Return the optimizers of the trainable weights.

    AdamW decays matrices and convolutions, not biases, norms and embeddings; Muon decays nothing. Weights
    whose `learning_rate_scale` is 0 are frozen here.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": linear layers are
        updated by their orthogonalized momentum, all other weights by AdamW.

    Raises:
        MucoError: no weight is trainable, one is in 16 bits, or a key of `learning_rate_scale` fits none.
    """
    _refuse_16_bits(modules)
    scales = _scales(modules, settings.learning_rate_scale or {})
    for weight, scale in scales.items():
        if scale == 0:
            weight.requires_grad_(False)
    linear, matrices, rest = _split(modules)
    if not linear + matrices + rest:
        raise MucoError(
            "backbone: all weights are frozen, pooler and loss have none: nothing would be trained"
        )
    parts: list[tuple[Optimizer, float]] = []
    if settings.optimizer == "muon" and linear:
        muon = PreciseMuon(
            _groups(linear, scales),
            lr=settings.muon_learning_rate,
            momentum=settings.muon_momentum,
            weight_decay=0.0,
        )
        parts.append((muon, settings.muon_learning_rate))
        linear = []
    if linear + matrices + rest:
        groups = _groups(linear + matrices, scales, weight_decay=settings.weight_decay)
        groups += _groups(rest, scales, weight_decay=0.0)
        adamw = AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
        parts.append((adamw, settings.learning_rate))
    return Optimizers(settings, tuple(parts))


def _refuse_16_bits(modules: nn.Module) -> None:
    """Raise MucoError if a trained weight has 16 bits, which rounds most updates to nothing."""
    for name, weight in modules.named_parameters():
        if weight.requires_grad and weight.dtype.itemsize < 4:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise MucoError(
                f"backbone.dtype: {name} is trained in {dtype}, which rounds most updates to nothing. Set "
                "`backbone.dtype: float32`, with `train.precision: bfloat16` to compute in bfloat16, or "
                "train adapters, which are float32: `backbone.adapter: {}`"
            )


def learning_rate_share(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of update `step`, counted from 0, divided by its peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    num_decay_steps = max(1, settings.num_steps - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / num_decay_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _split(modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of linear layers; convolutions and other matrices; embeddings, norms and biases."""
    kinds: dict[int, type[nn.Module]] = {
        id(weight): type(module)
        for module in modules.modules()
        for weight in module.parameters(recurse=False)
    }
    linear, matrices, rest = [], [], []
    for weight in modules.parameters():
        if not weight.requires_grad:
            continue
        kind = kinds[id(weight)]
        if weight.ndim < 2 or issubclass(kind, nn.Embedding):
            rest.append(weight)
        elif weight.ndim == 2 and issubclass(kind, nn.Linear):
            linear.append(weight)
        else:
            matrices.append(weight)
    return linear, matrices, rest


def _scales(modules: nn.Module, settings: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """Return the factors of `train.learning_rate_scale` by weight; raise MucoError if a key fits none."""
    trained = {name: weight for name, weight in modules.named_parameters() if weight.requires_grad}
    scales: dict[nn.Parameter, float] = {}
    for part, scale in settings.items():
        fitting = [weight for name, weight in trained.items() if f".{part}." in f".{name}."]
        if not fitting:
            known = sorted({".".join(name.split(".")[1:5]) for name in trained})
            raise MucoError(
                f"train.learning_rate_scale.{part}: no trained weight has this in its name. Names begin with "
                f"{', '.join(known)}"
            )
        scales |= dict.fromkeys(fitting, scale)
    return scales


def _groups(
    weights: Iterable[nn.Parameter], scales: Mapping[nn.Parameter, float], **settings: float
) -> list[dict[str, Any]]:
    """Return a group of weights for each factor of the learning rate."""
    groups: dict[float | None, list[nn.Parameter]] = {}
    for weight in weights:
        groups.setdefault(scales.get(weight), []).append(weight)
    return [
        {"params": group, **settings} | ({} if scale is None else {_SCALE: scale})
        for scale, group in groups.items()
    ]

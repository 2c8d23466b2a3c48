"""AdamW, or Muon beside it, and their schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from muco.config.recipe import TrainSettings
from muco.core.errors import MucoError
from muco.training.muon import PreciseMuon


@dataclass(frozen=True)
class Optimizers:
    """One or two optimizers that step together, each with the peak of its learning rate."""

    settings: TrainSettings
    parts: tuple[tuple[Optimizer, float], ...]

    def weights(self) -> list[nn.Parameter]:
        """Return every weight that is trained."""
        return [weight for part, _ in self.parts for group in part.param_groups for weight in group["params"]]

    def state_bytes(self) -> int:
        """Return what the optimizers keep once they have stepped: two numbers a weight, Muon one."""
        return sum(
            (1 if isinstance(part, PreciseMuon) else 2) * weight.nbytes
            for part, _ in self.parts
            for group in part.param_groups
            for weight in group["params"]
        )

    def step(self, step: int) -> None:
        """Apply the gradients as update `step`, counted from 0, and clear them."""
        share = learning_rate_share(self.settings, step)
        for part, peak in self.parts:
            for group in part.param_groups:
                group["lr"] = peak * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each, in order."""
        return [part.state_dict() for part, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take up the states that `state_dict` gave."""
        for (part, _), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizers(modules: nn.Module, settings: TrainSettings) -> Optimizers:
    """Return the optimizers of the trainable weights.

    AdamW decays matrices and convolutions, not biases, norms and embeddings; Muon decays nothing.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": momentum of
        matrices, orthogonalized by five Newton-Schulz steps; everything else by AdamW.

    Raises:
        MucoError: no weight is trainable.
    """
    linear, matrices, rest = _split(modules)
    if not linear + matrices + rest:
        raise MucoError(
            "backbone: all weights are frozen, pooler and loss have none: nothing would be trained"
        )
    parts: list[tuple[Optimizer, float]] = []
    if settings.optimizer == "muon" and linear:
        muon = PreciseMuon(
            linear, lr=settings.muon_learning_rate, momentum=settings.muon_momentum, weight_decay=0.0
        )
        parts.append((muon, settings.muon_learning_rate))
        linear = []
    if linear + matrices + rest:
        parts.append((_adamw(linear + matrices, rest, settings), settings.learning_rate))
    return Optimizers(settings, tuple(parts))


def learning_rate_share(settings: TrainSettings, step: int) -> float:
    """Return the share of its peak that the learning rate of update `step` has, counted from 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    rest = max(1, settings.num_steps - settings.warmup_steps)
    done = min(1.0, (step - settings.warmup_steps) / rest)
    return 0.5 * (1 + math.cos(math.pi * done))


def _split(modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights of linear maps, other matrices but embeddings, and the rest."""
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


def _adamw(decayed: list[nn.Parameter], plain: list[nn.Parameter], settings: TrainSettings) -> AdamW:
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
    )

"""AdamW and its schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from muco.core.recipe import TrainSettings


def make_optimizer(modules: nn.Module, settings: TrainSettings) -> AdamW:
    """Return AdamW over the trainable parameters; only matrices of linear maps decay."""
    embeddings = {
        id(weight)
        for module in modules.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    decayed, plain = [], []
    for weight in modules.parameters():
        if weight.requires_grad:
            (decayed if weight.ndim >= 2 and id(weight) not in embeddings else plain).append(weight)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of update `step`, counted from 0: a function of it alone."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    rest = max(1, settings.num_steps - settings.warmup_steps)
    done = min(1.0, (step - settings.warmup_steps) / rest)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

"""A small CLIP, and the gradients of one step with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from muco.core import TurnEncoder
from muco.plugins.backbones.clip import Clip
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.testing import dialogue_of
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers.small import SMALL_CLIP, TEXTS, picture

IMAGES = [picture("red", (56, 56)), picture("blue", (80, 40))]
DIALOGUES = [dialogue_of(["what is it?"], IMAGES[:1]), dialogue_of(["red"], ()), dialogue_of([""], IMAGES)]


def build(**changes: Any) -> Clip:
    torch.manual_seed(0)
    return Clip.build(Clip.Config.model_validate({**SMALL_CLIP, **changes}), texts=TEXTS).eval()


def pretrained(folder: Path, **changes: Any) -> Clip:
    return build(random_init=None, pretrained=str(folder), **changes)


def moved(backbone: Clip) -> Clip:
    """Change every trained weight, as training would."""
    torch.manual_seed(1)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return backbone


def trained(backbone: Clip) -> set[str]:
    return {name for name, weight in backbone.named_parameters() if weight.requires_grad}


def stepper(reader, *, cached=False, budget=None, dtype=torch.float64, packer=None, **changes):
    """Return the encoder, and what puts the gradients of step 0 on it."""
    backbone = build(fusion="mlp", **changes).to(dtype)
    torch.nn.init.normal_(backbone.fusion.down.weight, std=0.1)
    if changes.get("adapter"):
        moved(backbone)
    encoder = TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=32)).train()
    batches = StepBatches(
        readers={"ragged": reader},
        sampler=Mixture(Mixture.Config()),
        packer=packer or MultiTurn(MultiTurn.Config(context="isolated", system="")),
        processor=backbone.processor,
        global_batch_size=7,
        seed=0,
        chunk_tokens=budget,
    )
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates="mask"))
    step = Stepper(encoder, loss, torch.device("cpu"), grad_cache=cached)
    return encoder, lambda: step(batches[0])


def gradients(reader, **settings):
    encoder, step = stepper(reader, **settings)
    return step().mean, {n: w.grad for n, w in encoder.named_parameters() if w.grad is not None}


def same(found, expected, tolerance):
    """Agree, as a share of a weight's greatest gradient: small embeddings have large ones."""
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        greatest = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=tolerance * greatest, msg=name)


def loss_change(encoder: TurnEncoder, step: Any) -> float:
    """Return by how much three updates on the batch of `step` change its loss."""
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    first = last = step().mean
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        last = step().mean
    return last - first

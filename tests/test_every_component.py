"""Every packer, pooler and loss with every backbone that supports it: one whole step each."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from muco.core import TurnEncoder, default_registry
from muco.core.fit import missing_in
from muco.data.read import ShardReader
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests import small, test_backbone_clip, test_backbone_llava
from tests.small import TEXTS

REGISTRY = default_registry()
BACKBONES = {
    **{family: ("qwen_vl", small.small(family)) for family in small.FAMILIES},
    **{family: ("llava", test_backbone_llava.small(family)) for family in test_backbone_llava.FAMILIES},
    "clip": ("clip", {**test_backbone_clip.SMALL, "truncate": True}),
}
SETTINGS = {
    ("packer", "multi_turn"): {"context": "isolated"},
    ("loss", "matryoshka"): {"loss": "multiturn_infonce", "dims": [16, 8]},
}
"""Where the defaults do not do; a component that needs some and has none here fails."""


def names(kind: str) -> list[str]:
    return [entry.name for entry in REGISTRY.entries(kind)]


def part(kind: str, name: str):
    cls = REGISTRY.component(kind, name)
    return cls, cls.Config.model_validate(SETTINGS.get((kind, name), {}))


@cache
def backbone_of(family: str):
    name, settings = BACKBONES[family]
    cls = REGISTRY.component("backbone", name)
    config = cls.Config.model_validate(settings)
    torch.manual_seed(0)
    return cls, config, cls.build(config, texts=[*TEXTS, "Rewrite the response."])


def supported(family: str, **chosen: str) -> bool:
    cls, config, _ = backbone_of(family)
    return not missing_in({"backbone": (cls, config), **{k: part(k, name) for k, name in chosen.items()}})


def take_a_step(shards: Path, family: str, *, packer: str, pooler: str, loss: str) -> None:
    _, _, backbone = backbone_of(family)
    pooler_cls, pooler_config = part("pooler", pooler)
    encoder = TurnEncoder(backbone, pooler_cls(pooler_config, hidden_dim=backbone.hidden_dim)).train()
    encoder.zero_grad()
    packer_cls, packer_config = part("packer", packer)
    loss_cls, loss_config = part("loss", loss)
    batches = StepBatches(
        readers={"scenes": ShardReader(shards)},
        sampler=Mixture(Mixture.Config()),
        packer=packer_cls(packer_config),
        processor=backbone.processor,
        samples_per_step=4,
        seed=0,
        chunk_tokens=600,
    )
    inputs = batches[0]
    assert not inputs.unreadable
    done = Stepper(encoder, loss_cls(loss_config), torch.device("cpu"), cached=True)(inputs)
    gradients = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
    assert done.num_turns
    assert torch.isfinite(torch.tensor(done.mean))
    assert all(torch.isfinite(each).all() for each in gradients)
    assert any(each.any() for each in gradients)


@pytest.mark.parametrize(
    ("family", "packer", "loss"), list(product(BACKBONES, names("packer"), names("loss")))
)
def test_every_packer_and_loss_with_every_backbone(shards, family, packer, loss):
    if supported(family, packer=packer, loss=loss):
        take_a_step(shards, family, packer=packer, pooler="turn_token", loss=loss)
    else:
        assert family == "clip", "a decoder takes them all"
        assert packer == "reconstruction"


@pytest.mark.parametrize(("family", "pooler"), list(product(BACKBONES, names("pooler"))))
def test_every_pooler_with_every_backbone(shards, family, pooler):
    take_a_step(shards, family, packer="multi_turn", pooler=pooler, loss="multiturn_infonce")

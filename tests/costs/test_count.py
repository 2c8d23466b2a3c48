"""Counted FLOPs equal those that torch counts, to the last one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muco.core import Content, Dialogue
from muco.costs.count import Flops, count_part
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import TEXTS, picture

LORA = {"rank": 4, "dora": False, "dropout": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "trained": {},
    "all tokens are read": {"gradient_checkpointing": True},
    "frozen vision": {"freeze_vision": True},
    "checkpointed": {"gradient_checkpointing": True},
    "frozen vision, checkpointed": {"freeze_vision": True, "gradient_checkpointing": True},
    "lora": {"adapter": LORA},
    "lora, checkpointed": {"adapter": LORA, "gradient_checkpointing": True},
    "lora on vision too": {"adapter": {**LORA, "vision": True}},
    "lora beside trained vision": {"adapter": LORA, "freeze_vision": False},
    "dora with dropout": {"adapter": {**LORA, "dora": True}},
    "dora without dropout": {"adapter": {**LORA, "dora": True, "dropout": 0.0, "vision": True}},
}


def dialogue() -> Dialogue:
    packer = REGISTRY.component("packer", "single_turn")
    return packer(packer.Config()).inference(Content("what is it?", (picture("red", (150, 90)),)))


@pytest.fixture(autouse=True)
def countable_attention():
    """Use the attention that torch counts: not a CPU's own kernel, nor that of a frozen tower."""
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(True)


CASES = [
    *((name, setting) for name in BACKBONES for setting in ("trained", "lora on vision too")),
    *((name, setting) for name in ("qwen2_vl", "llava", "clip") for setting in SETTINGS),
]


@pytest.mark.parametrize(("name", "setting"), dict.fromkeys(CASES))
def test_equals_what_torch_counts(name: str, setting: str):
    kind, small = BACKBONES[name]
    settings = SETTINGS[setting]
    backbone = REGISTRY.component("backbone", kind)
    config = backbone.Config.model_validate({**small, **settings})
    model = backbone.build(config, texts=TEXTS).train()
    chunk = model.processor.prepare([dialogue()])
    if setting != "all tokens are read":
        chunk = replace(chunk, read_tokens=chunk.spans.token)
    with FlopCounterMode(display=False) as forward:
        hidden = model.encode(chunk).hidden
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    layers = backbone.layers_of(config, backbone.sizes_of(config))
    assert layers is not None
    lengths = layers.lengths_of(chunk)
    total = sum((count_part(part, lengths) for part in layers.parts), Flops())
    assert total.forward == forward.get_total_flops()
    assert total.backward + total.recomputed == backward.get_total_flops()

"""The last layer is computed for the tokens that are read, with the same result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from muco.core.backbone import Backbone
from muco.plugins.backbones.decoder.last_layer import LastLayer
from muco.testing import dialogue_of
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import TEXTS, picture

LORA = {"rank": 2, "dropout": 0.0}
DECODERS = [name for name in BACKBONES if name != "clip"]
SETTINGS: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"rows": "padded"},
    "checkpointed": {"gradient_checkpointing": True},
    "lora": {"adapter": LORA, "gradient_checkpointing": True},
    "dora": {"adapter": {**LORA, "dora": True}},
}

# Hidden size 32, feed-forward size 48; 21 tokens in two dialogues of 19 and 2, 4 of them read.
_TOKEN = 2 * (2 * 32 * 32 + 3 * 32 * 48)
SAVED = {"packed": 17 * _TOKEN, "padded": (2 * 19 - 4) * _TOKEN, "lora": 17 * _TOKEN}


def build(name: str, settings: dict[str, Any]) -> Backbone:
    kind, small = BACKBONES[name]
    cls: Any = REGISTRY.component("backbone", kind)
    torch.manual_seed(0)
    return cls.build(cls.Config.model_validate({**small, **settings}), texts=TEXTS).double().train()


def states(backbone: Backbone, *, reading: bool) -> torch.Tensor:
    """Return the states of the embedding tokens; `reading`: of no others."""
    texts = ["what is it?", "a", "a red circle"]
    dialogues = [dialogue_of(texts, [picture("red", (90, 60))]), dialogue_of(["a"], ())]
    chunk = backbone.processor.prepare(dialogues)
    tokens = chunk.spans.token
    return backbone.encode(replace(chunk, read_tokens=tokens if reading else None)).hidden[tokens]


def saved_flops(backbone: Backbone) -> int:
    counts = []
    for reading in (True, False):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            states(backbone, reading=reading)
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


CASES = [*((name, "packed") for name in DECODERS), *(("qwen2_vl", setting) for setting in SETTINGS)]


@pytest.mark.parametrize(("name", "setting"), dict.fromkeys(CASES))
def test_states_and_gradients_are_those_of_the_whole_layer(name: str, setting: str):
    backbone = build(name, SETTINGS[setting])
    trained = [weight for weight in backbone.parameters() if weight.requires_grad]
    results = []
    for reading in (True, False):
        found = states(backbone, reading=reading)
        weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
        results.append([found, *torch.autograd.grad((found * weights).sum(), trained, allow_unused=True)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def test_several_threads_encode_with_one_model():
    backbone = build("qwen2_vl", {})
    chunks = [
        backbone.processor.prepare([dialogue_of([text] * number, [picture("red", (90, 60))])])
        for text, number in (("what is it?", 1), ("a", 3), ("a red circle", 6))
    ]
    chunks = [replace(chunk, read_tokens=chunk.spans.token) for chunk in chunks]

    @torch.no_grad()
    def encode(index: int) -> torch.Tensor:
        chunk = chunks[index % len(chunks)]
        return backbone.encode(chunk).hidden[chunk.spans.token]

    expected = [encode(index) for index in range(len(chunks))]
    with ThreadPoolExecutor(4) as threads:
        for index, found in enumerate(threads.map(encode, range(120))):
            torch.testing.assert_close(found, expected[index % len(chunks)], rtol=0, atol=1e-10)


def test_a_layer_with_other_modules_is_left_as_it_is():
    layer = torch.nn.Module()
    layer.self_attn, layer.mlp = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    LastLayer().attach(layer)
    assert not layer.mlp._forward_hooks


@pytest.mark.parametrize("setting", ["packed", "padded", "lora"])
def test_other_tokens_are_left_out_before_and_after_adapters_are_merged(setting: str):
    backbone = build("qwen2_vl", SETTINGS[setting])
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    before = states(backbone, reading=True)
    adapters = saved_flops(backbone) - SAVED[setting]
    assert adapters > 0 if setting == "lora" else adapters == 0
    backbone.merge_adapters()
    torch.testing.assert_close(states(backbone, reading=True), before, rtol=0, atol=1e-10)
    assert saved_flops(backbone) == SAVED[setting]

"""What a step computes is what is counted, with cached gradients and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muco.core import Content, Loss, LossTerms, TurnEmbeddings, TurnEncoder
from muco.core.component import ComponentConfig
from muco.core.layers import join_lengths
from muco.core.turns import EncoderInputs
from muco.costs.count import Flops
from muco.costs.step import Chunks, count_step
from muco.training.batches import SideInputs, StepInputs
from muco.training.step import Stepper
from tests.helpers.backbones import BACKBONES, REGISTRY
from tests.helpers.small import TEXTS, picture


class WithoutProducts(Loss):
    """A loss without products of matrices, so that the encoder's alone are counted."""

    Config = ComponentConfig

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return LossTerms((query.vectors * target.vectors).sum(1))


def side(chunk: EncoderInputs) -> SideInputs:
    return SideInputs((chunk,), torch.arange(len(chunk.ids)), chunk.ids)


CASES: list[tuple[str, bool, dict[str, Any]]] = [
    ("qwen2_vl", False, {}),
    ("qwen2_vl", True, {}),
    ("qwen2_vl", True, {"freeze_vision": True}),
    ("qwen2_vl", True, {"adapter": {"rank": 4}, "gradient_checkpointing": True}),
    ("llava", True, {"freeze_vision": True}),
]


@pytest.mark.parametrize(("name", "grad_cache", "settings"), CASES)
def test_hardware_flops_are_what_a_step_computes(name: str, grad_cache: bool, settings: dict[str, Any]):
    kind, small = BACKBONES[name]
    cls = REGISTRY.component("backbone", kind)
    config = cls.Config.model_validate({**small, **settings})
    backbone = cls.build(config, texts=TEXTS)
    pooler = REGISTRY.component("pooler", "last_token")
    encoder = TurnEncoder(backbone, pooler(pooler.Config(), hidden_dim=backbone.hidden_dim)).train()
    packer = REGISTRY.component("packer", "single_turn")
    packer = packer(packer.Config())
    contents = (Content("what is it?", (picture("red", (150, 90)),)), Content("a red circle"))
    chunks = [backbone.processor.prepare([packer.inference(content)]) for content in contents]
    inputs = StepInputs(0, 0, side(chunks[0]), side(chunks[1]), ("a",), ())
    stepper = Stepper(encoder, WithoutProducts(), torch.device("cpu"), grad_cache=grad_cache)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stepper(inputs)
    layers = cls.layers_of(config, backbone.sizes)
    lengths = [layers.lengths_of(encoder.reading(chunk)) for chunk in chunks]
    # The chunk with the image is the larger one, whose activations are held.
    twice = Chunks(lengths[1], 1) if grad_cache else None
    step = count_step(layers.parts, Chunks(join_lengths(lengths), 2), loss=Flops(), twice=twice)
    assert step.hardware == counter.get_total_flops()
    assert step.unmasked < step.model <= step.hardware

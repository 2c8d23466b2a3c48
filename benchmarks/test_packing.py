"""Pairs a second of whole training steps: seven turns an image against one.

    pytest benchmarks/test_packing.py

Both train the same 28 pairs of four images a step: forward, loss, backward, update. An image costs 18 times
a turn's text, as in the paper, so arithmetic says (18 + 1 + 1) * 7 / (18 + 7 + 7) = 4.4.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.steps import ISOLATED, encoder_of, samples, step_of
from muco.core import TurnEncoder
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn

NUM_IMAGES, NUM_TURNS = 4, 7
TEXT_TOKENS = 11
"""With its embedding token, a turn is an eighteenth of an image."""
IMAGE_SIDE_PIXELS = 28 * 15
"""15 x 15 tokens."""
DECODER = {"hidden_dim": 256, "num_layers": 6, "mlp_dim": 1024, "vision_layers": 1, "vision_dim": 32}

PACKERS = {
    "multi_turn": ISOLATED,
    "multi_turn_causal": MultiTurn(MultiTurn.Config(context="causal", system="")),
    "single_turn": SingleTurn(SingleTurn.Config(turns="all", system="")),
}


@pytest.fixture(scope="module")
def encoder() -> TurnEncoder:
    sizes = {"min_pixels": IMAGE_SIDE_PIXELS**2, "max_pixels": IMAGE_SIDE_PIXELS**2}
    return encoder_of(sizes, {**DECODER, "vision_heads": 2})


@pytest.mark.parametrize("name", PACKERS)
def test_pairs_per_second(benchmark, encoder, name):
    data = samples(NUM_IMAGES, turns=NUM_TURNS, side_pixels=IMAGE_SIDE_PIXELS, lengths=[TEXT_TOKENS])
    gradients, inputs = step_of(encoder, data, packer=PACKERS[name])
    assert len(inputs.queries.ids) == NUM_IMAGES * NUM_TURNS
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)

    def step() -> None:
        gradients()
        optimizer.step()

    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    chunks = inputs.queries.chunks + inputs.targets.chunks
    benchmark.extra_info["tokens"] = sum(chunk.num_tokens for chunk in chunks)
    benchmark.extra_info["patches"] = sum(chunk.num_patches for chunk in chunks)
    benchmark.extra_info["pairs_per_second"] = NUM_IMAGES * NUM_TURNS / benchmark.stats["median"]

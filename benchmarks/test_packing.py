"""Pairs a second of whole training steps: seven turns an image against one.

    pytest benchmarks/test_packing.py

Both sides train the same 28 pairs of four images a step: forward, loss, backward, update. An image costs
18 times a turn's text, as in the paper, so arithmetic says (18 + 1 + 1) * 7 / (18 + 7 + 7) = 4.4.
"""

from __future__ import annotations

import io
import random

import pytest
import torch
from PIL import Image

from muco.core import Content, EncodedImage, Pair, Sample, TurnEncoder, TurnIds
from muco.core.turns import EncoderInputs
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.training.batches import SideInputs, StepInputs
from muco.training.step import Stepper

NUM_IMAGES, NUM_TURNS = 4, 7
TEXT_TOKENS = 12
IMAGE_SIDE_PIXELS = 28 * 15
"""15 x 15 tokens, of which a turn's text and its embedding token are an eighteenth."""

PACKERS = {
    "multi_turn": MultiTurn(MultiTurn.Config(context="isolated", system="")),
    "multi_turn_causal": MultiTurn(MultiTurn.Config(context="causal", system="")),
    "single_turn": SingleTurn(SingleTurn.Config(turns="all", system="")),
}


def samples() -> list[Sample]:
    made = []
    for number in range(NUM_IMAGES):
        buffer = io.BytesIO()
        Image.effect_noise((IMAGE_SIDE_PIXELS, IMAGE_SIDE_PIXELS), 50 + number).save(buffer, "PNG")
        pairs = [
            Pair(f"t{turn}", (Content(text(number, turn)),), Content(text(turn, number)))
            for turn in range(NUM_TURNS)
        ]
        made.append(Sample(str(number), "noise", (EncodedImage(buffer.getvalue()),), tuple(pairs)))
    return made


def text(*seed: int) -> str:
    """Return a text of `TEXT_TOKENS` bytes, each one token of the benchmark's tokenizer."""
    return "".join(random.Random(str(seed)).choices("abcdefgh", k=TEXT_TOKENS - 1))


def side(processor, dialogues) -> SideInputs:
    chunk: EncoderInputs = processor.prepare(dialogues)
    return SideInputs(
        (chunk,), torch.arange(len(chunk.ids)), TurnIds.of([t.key for d in dialogues for t in d.turns])
    )


@pytest.fixture(scope="module")
def encoder() -> TurnEncoder:
    torch.manual_seed(0)
    config = QwenVL.Config.model_validate(
        {
            "template": "bare",
            "min_pixels": IMAGE_SIDE_PIXELS**2,
            "max_pixels": IMAGE_SIDE_PIXELS**2,
            "random_init": {
                "hidden_dim": 256,
                "num_layers": 6,
                "mlp_dim": 1024,
                "vision_dim": 32,
                "vision_layers": 1,
                "vision_heads": 2,
                "vocab_size": 265,
            },
        }
    )
    backbone = QwenVL.build(config, texts=["a"])
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim))


@pytest.mark.parametrize("name", PACKERS)
def test_pairs_per_second(benchmark, encoder, name):
    packed = [
        PACKERS[name].pack(sample, batch_random=random.Random(0), sample_random=random.Random(0))
        for sample in samples()
    ]
    processor = encoder.backbone.processor
    queries = side(processor, [dialogue for pair in packed for dialogue in pair.queries])
    targets = side(processor, [dialogue for pair in packed for dialogue in pair.targets])
    inputs = StepInputs(0, 0, queries, targets, (), ())
    assert len(queries.ids) == NUM_IMAGES * NUM_TURNS
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
    stepper = Stepper(encoder, loss, torch.device("cpu"))

    def step() -> None:
        stepper(inputs)
        optimizer.step()
        optimizer.zero_grad()

    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    chunk = queries.chunks[0]
    tokens = chunk.num_tokens + targets.chunks[0].num_tokens
    benchmark.extra_info |= {"tokens": tokens, "patches": chunk.num_patches}
    benchmark.extra_info["pairs_per_second"] = NUM_IMAGES * NUM_TURNS / benchmark.stats["median"]

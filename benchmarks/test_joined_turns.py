"""Encoding questions about images: one pass an image, its questions isolated, against a pass each.

    pytest benchmarks/test_joined_turns.py

Seven questions on each of four pictures of 225 tokens. Forward passes are counted, vectors compared.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.steps import ISOLATED, encoder_of, noise, text
from muco.core import Content, TurnEncoder
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.encode import CachedEmbedder

NUM_IMAGES, NUM_TURNS, TEXT_TOKENS = 4, 7, 12
SIDE_PIXELS = 28 * 15
DECODER = {"hidden_dim": 256, "num_layers": 6, "mlp_dim": 1024, "vision_layers": 1, "vision_dim": 32}


@pytest.fixture(scope="module")
def model() -> TurnEncoder:
    """Return a model of six layers with a small vision tower."""
    sizes = {"min_pixels": SIDE_PIXELS**2, "max_pixels": SIDE_PIXELS**2}
    return encoder_of(sizes, {**DECODER, "vision_heads": 2})


@pytest.fixture(scope="module")
def contents() -> list[Content]:
    images = [noise(SIDE_PIXELS, index) for index in range(NUM_IMAGES)]
    return [
        Content(text(TEXT_TOKENS, index, turn), (image,))
        for index, image in enumerate(images)
        for turn in range(NUM_TURNS)
    ]


VECTORS: dict[bool, torch.Tensor] = {}


@pytest.mark.parametrize("join_turns", [False, True], ids=["one_by_one", "one_pass_an_image"])
def test_questions_on_the_same_images(benchmark, model, contents, join_turns, tmp_path_factory):
    def encode() -> CachedEmbedder:
        with EmbeddingStore(tmp_path_factory.mktemp("store"), {}, dim=256) as store:
            embedder = CachedEmbedder(model, ISOLATED, store, batch_tokens=4096, join_turns=join_turns)
            vectors = embedder.encode(contents).vectors
            VECTORS[join_turns] = vectors.block(0, len(vectors))
            return embedder

    embedder = benchmark.pedantic(encode, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= asdict(embedder.passes)
    print(f"\n{embedder.passes}")
    if len(VECTORS) == 2:
        torch.testing.assert_close(VECTORS[True], VECTORS[False], atol=1e-5, rtol=0)

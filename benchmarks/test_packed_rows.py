"""Rows without padding against padded ones, on texts of 32 to 256 tokens.

pytest benchmarks/test_packed_rows.py
"""

from __future__ import annotations

import pytest

from benchmarks.steps import encoder_of, samples, step_of

LENGTHS = [32, 96, 256, 48, 64, 192, 32, 128]
DECODER = {"hidden_dim": 256, "num_layers": 4, "mlp_dim": 1024, "vision_layers": 1, "vision_dim": 32}


@pytest.mark.parametrize("chunk_tokens", [None, 1024], ids=["at_once", "in_chunks"])
@pytest.mark.parametrize("rows", ["padded", "packed"])
def test_a_step_of_lengths_that_vary_8_fold(benchmark, rows, chunk_tokens):
    encoder = encoder_of({"rows": rows}, {**DECODER, "vision_heads": 2})
    data = samples(16, turns=1, side_pixels=0, lengths=LENGTHS)
    step, inputs = step_of(encoder, data, chunk_tokens=chunk_tokens)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    chunks = inputs.queries.chunks + inputs.targets.chunks
    padding = sum(chunk.num_padding_tokens for chunk in chunks)
    benchmark.extra_info["padding_share"] = padding / (padding + sum(chunk.num_tokens for chunk in chunks))

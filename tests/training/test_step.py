"""The gradients of a step: plain and cached, in any chunks, over ranks, with frozen parts and dropout."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from muco.core import TurnEncoder
from muco.data.shards.reader import ShardReader
from muco.distributed.fsdp import Shards
from muco.distributed.gradients import GradientSum
from muco.distributed.ranks import Ranks
from muco.plugins.backbones.qwen_vl import QwenVL
from tests.helpers.gradients import CPU, encoder, gradients, ragged, same
from tests.helpers.ranks import Group
from tests.helpers.small import FAMILIES, small


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ragged")
    ragged(folder)
    return folder


@pytest.fixture(scope="module")
def reader(shards) -> ShardReader:
    return ShardReader(shards)


@cache
def encoder_of(rows: str) -> TurnEncoder:
    return encoder(rows=rows)


@pytest.fixture(scope="module")
def whole(reader):
    """Return the gradients of the batch in one chunk of padded rows, by context."""
    return cache(
        lambda context: gradients(encoder_of("padded"), reader, cached=False, budget=None, context=context)
    )


@settings(max_examples=12)
@given(
    rows=st.sampled_from(["packed", "padded"]),
    budget=st.integers(1, 400),
    cached=st.booleans(),
    held=st.sampled_from([0, 300]),
    context=st.sampled_from(["isolated", "causal"]),
)
def test_any_chunking_of_any_rows_equals_the_whole_batch(reader, whole, rows, budget, cached, held, context):
    options = {"cached": cached, "budget": budget, "held_tokens": held}
    chunked = gradients(encoder_of(rows), reader, **options, context=context)
    same(chunked, whole(context), 1e-10)


@pytest.mark.parametrize("context", ["isolated", "causal"])
def test_float32_agrees_to_1e_5(reader, context):
    plain, cached = (
        gradients(encoder(), reader, cached=each, budget=budget, context=context, dtype=torch.float32)
        for each, budget in ((False, None), (True, 90))
    )
    same(cached, plain, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_any_family_have_the_gradients_of_a_plain_step(reader, family):
    """Dropout, a frozen tower whose features are held, and gradient checkpointing, all at once."""
    settings = small(family, adapter={"rank": 4, "alpha": 8.0, "dropout": 0.3})
    plain, cached = (
        gradients(encoder(**settings, gradient_checkpointing=each), reader, cached=each, budget=300)
        for each in (False, True)
    )
    assert not any("visual" in name for name in plain[1])
    assert any("lora" in name for name in plain[1])
    same(cached, plain, 1e-9)


@pytest.mark.parametrize("context", ["isolated", "causal"])
def test_with_dropout_cached_equals_plain_through_the_same_chunks(reader, context):
    adapted = encoder(lora=True)
    plain = gradients(adapted, reader, cached=False, budget=120, context=context)
    assert plain[1].keys() == {n for n, w in adapted.named_parameters() if w.requires_grad}
    same(gradients(adapted, reader, cached=True, budget=120, context=context), plain, 1e-10)
    several_held = gradients(adapted, reader, cached=True, budget=120, held_tokens=300, context=context)
    same(several_held, plain, 1e-10)
    other = gradients(adapted, reader, cached=True, budget=60, context=context)
    assert abs(other[0] - plain[0]) > 1e-6, "dropout drew nothing: the test shows nothing"
    if context == "isolated":
        recomputed = encoder(lora=True, gradient_checkpointing=True)
        same(gradients(recomputed, reader, cached=False, budget=120), plain, 1e-10)


def test_a_frozen_vision_tower_runs_once_and_gets_no_gradient(reader, monkeypatch):
    frozen = encoder(freeze_vision=True)
    has_pixels = []
    encode_images = QwenVL.encode_images

    def counted(self, inputs):
        has_pixels.append("pixel_values" in inputs.tensors)
        return encode_images(self, inputs)

    monkeypatch.setattr(QwenVL, "encode_images", counted)
    plain = gradients(frozen, reader, cached=False, budget=120)
    runs_of_plain = sum(has_pixels)
    cached = gradients(frozen, reader, cached=True, budget=120)
    assert runs_of_plain > 1
    assert sum(has_pixels) == 2 * runs_of_plain, "the tower ran more often than in a plain step"
    same(cached, plain, 1e-10)
    assert not any("visual" in name for name in cached[1])


CASES = [
    {"cached": False, "budget": None, "context": "causal", "num_samples": 7},
    {"cached": False, "budget": 90, "context": "isolated", "num_samples": 2},
    {"cached": True, "budget": 90, "context": "isolated", "num_samples": 7},
    {"cached": True, "budget": 90, "context": "causal", "num_samples": 2},
    {"cached": True, "budget": 90, "context": "causal", "num_samples": 7, "held_tokens": 200},
]
"""With seven samples the shares of the ranks are uneven; with two, the third of three ranks has none."""
MODES = [{}, {"sharded": True}, {"sharded": True, "by_layer": True}]
ADAPTED = {"cached": True, "budget": 90}
"""A step of LoRA on frozen weights, without dropout."""


def cases_of(mode: dict) -> list[dict]:
    """Return the cases of a mode: layers are gathered one by one with cached gradients only."""
    return [case for case in CASES if case["cached"] or "by_layer" not in mode]


def rank_gradients(ranks: Ranks, shards: Path) -> list:
    """Return the gradients of all cases: full weights, sharded ones, and sharded ones gathered by layer."""
    num_exchanges = []
    finish = GradientSum.finish

    def counted(self):
        num_exchanges.append(1)
        finish(self)

    GradientSum.finish = counted
    model, adapted, reader = encoder(), encoder(lora=True).eval(), ShardReader(shards)
    torch.manual_seed(100 + ranks.rank)  # ranks whose generators differ
    results = []
    for mode in MODES:
        for case in cases_of(mode):
            num_exchanges.clear()
            results.append(gradients(model, reader, ranks=ranks, **mode, **case))
            assert len(num_exchanges) == 1, "gradients are exchanged once a step"
        results.append(gradients(adapted, reader, ranks=ranks, **mode, **ADAPTED))
    return results


@pytest.mark.process
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process(tmp_path, shards, reader, world_size):
    group = Group(tmp_path, world_size, rank_gradients, shards)
    model = encoder()
    of_case = cache(lambda i: gradients(model, reader, **{**CASES[i], "cached": False, "budget": None}))
    adapted = gradients(encoder(lora=True).eval(), reader, **ADAPTED)
    expected = []
    for mode in MODES:
        expected += [*(of_case(CASES.index(case)) for case in cases_of(mode)), adapted]
    for results in group.results():
        for of_rank, of_one_process in zip(results, expected, strict=True):
            same(of_rank, of_one_process, 1e-10)


def shard_mixed_dtypes(ranks: Ranks, folder: Path) -> None:
    reader = ShardReader(folder)
    model = encoder(adapter={"rank": 4, "dropout": 0.0}, dtype="bfloat16").eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    full, sharded, by_layer = (
        gradients(model, reader, cached=True, budget=90, dtype=None, ranks=ranks, **mode) for mode in MODES
    )
    same(sharded, full, 1e-5)
    same(by_layer, full, 1e-5)
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        assert any(part in name and gradient.any() for name, gradient in sharded[1].items())
    sharded_model = copy.deepcopy(model)
    shards = Shards.of(sharded_model, ranks, CPU)
    dtypes = {weight.dtype for weight in sharded_model.parameters() if isinstance(weight, DTensor)}
    assert dtypes == {torch.bfloat16, torch.float32}
    with shards.full_state_dicts(keep=True):
        saved = sharded_model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(saved[name], weight), name


@pytest.mark.process
def test_sharded_bfloat16_weights_and_float32_adapters_have_the_gradients_of_full_ones(tmp_path, shards):
    Group(tmp_path, 2, shard_mixed_dtypes, shards).results()

"""The gradients of a step: plain and cached, in any chunks, over ranks, with frozen parts and dropout."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from muco.core import TurnEncoder
from muco.data.shards.reader import ShardReader
from muco.distributed.fsdp import Shards
from muco.distributed.ranks import Ranks
from muco.plugins.backbones.qwen_vl import QwenVL
from tests.helpers.gradients import CPU, encoder, gradients, ragged, same
from tests.helpers.small import FAMILIES, small


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> ShardReader:
    return ragged(tmp_path_factory.mktemp("ragged"))


@pytest.fixture(scope="module", params=["packed", "padded"])
def model(request) -> TurnEncoder:
    return encoder(rows=request.param)


def test_packed_rows_have_the_gradients_of_padded_ones(reader):
    found, expected = (
        gradients(encoder(rows=rows), reader, cached=True, budget=150, context="isolated")
        for rows in ("packed", "padded")
    )
    same(found, expected, 1e-10)


@settings(max_examples=12)
@given(budget=st.integers(1, 400), cached=st.booleans(), context=st.sampled_from(["isolated", "causal"]))
def test_any_chunking_plain_or_cached_equals_the_whole_batch(model, reader, budget, cached, context):
    whole = gradients(model, reader, cached=False, budget=None, context=context)
    same(gradients(model, reader, cached=cached, budget=budget, context=context), whole, 1e-10)


@pytest.mark.parametrize("context", ["isolated", "causal"])
def test_float32_agrees_to_1e_5(model, reader, context):
    whole = gradients(model, reader, cached=False, budget=None, context=context, dtype=torch.float32)
    cached = gradients(model, reader, cached=True, budget=90, context=context, dtype=torch.float32)
    same(cached, whole, 1e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_activation_checkpointing_leaves_the_gradients_as_they_are(reader, cached):
    found, expected = (
        gradients(
            encoder(lora=True, gradient_checkpointing=each),
            reader,
            cached=cached,
            budget=120,
            context="isolated",
        )
        for each in (True, False)
    )
    same(found, expected, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_any_family_have_the_gradients_of_a_plain_step(reader, family):
    """Dropout, a frozen tower whose features are kept, and activation checkpointing, all at once."""
    settings = small(family, adapter={"rank": 4, "alpha": 8.0, "dropout": 0.3})
    plain, cached = (
        gradients(
            encoder(**settings, gradient_checkpointing=each),
            reader,
            cached=each,
            budget=300,
            context="isolated",
        )
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
    other = gradients(adapted, reader, cached=True, budget=60, context=context)
    assert abs(other[0] - plain[0]) > 1e-6, "dropout drew nothing: the test shows nothing"


def test_a_frozen_vision_tower_runs_once_and_gets_no_gradient(reader, monkeypatch):
    frozen = encoder(freeze_vision=True)
    runs = []
    original = QwenVL.encode_images

    def counted(self, inputs):
        runs.append("pixel_values" in inputs.tensors)
        return original(self, inputs)

    monkeypatch.setattr(QwenVL, "encode_images", counted)
    plain = gradients(frozen, reader, cached=False, budget=120, context="isolated")
    in_plain = sum(runs)
    cached = gradients(frozen, reader, cached=True, budget=120, context="isolated")
    assert in_plain > 1
    assert sum(runs) == 2 * in_plain, "the tower ran more often than in a plain step"
    same(cached, plain, 1e-10)
    assert not any("visual" in name for name in cached[1])


CASES = [
    (cached, budget, context, num_samples)
    for cached in (False, True)
    for budget, num_samples in ((None, 7), (90, 7), (90, 2))
    for context in ("isolated", "causal")
]
"""With two samples a step, the third of three ranks has none; with seven they are uneven."""
ADAPTED = {"cached": True, "budget": 90, "context": "isolated"}
"""A step of LoRA on frozen weights, without dropout."""


def cases(sharded: bool) -> list[tuple]:
    """Return the cases to run: shards, the slower ones, in one context."""
    return [case for case in CASES if case[2] == "isolated" or not sharded]


def _rank_main(rank: int, number: int, folder: str, sharded: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number
    )
    sums = []
    original = Ranks.sum_gradients

    def counted(self, weights):
        sums.append(1)
        original(self, weights)

    Ranks.sum_gradients = counted
    model, adapted, reader = encoder(), encoder(lora=True).eval(), ShardReader(Path(folder) / "ragged")
    torch.manual_seed(100 + rank)  # ranks whose generators differ
    found = []
    for cached, budget, context, num_samples in cases(sharded):
        told = {"context": context, "cached": cached, "budget": budget, "num_samples": num_samples}
        sums.clear()
        found.append(gradients(model, reader, ranks=Ranks(rank, number), sharded=sharded, **told))
        assert len(sums) == 1, "gradients are exchanged once a step"
    found.append(gradients(adapted, reader, ranks=Ranks(rank, number), sharded=sharded, **ADAPTED))
    torch.save(found, f"{folder}/found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_equal_one_process(tmp_path, number, sharded):
    model = encoder()
    reader = ragged(tmp_path / "ragged")
    torch.multiprocessing.spawn(_rank_main, args=(number, str(tmp_path), sharded), nprocs=number)
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(number)]
    expected = [
        gradients(model, reader, cached=False, context=context, budget=budget, num_samples=num_samples)
        for _, budget, context, num_samples in cases(sharded)
    ]
    expected.append(gradients(encoder(lora=True).eval(), reader, **ADAPTED))
    for each in found:
        for mine, alone in zip(each, expected, strict=True):
            same(mine, alone, 1e-10)


def _mixed_main(rank: int, number: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number
    )
    ranks, reader = Ranks(rank, number), ShardReader(Path(folder) / "ragged")
    model = encoder(adapter={"rank": 4, "dropout": 0.0}, dtype="bfloat16").eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    told = {"cached": True, "budget": 90, "context": "isolated", "dtype": None, "ranks": ranks}
    whole, split = (gradients(model, reader, sharded=each, **told) for each in (False, True))
    same(split, whole, 1e-5)
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        assert any(part in name and gradient.any() for name, gradient in split[1].items())
    parts = copy.deepcopy(model)
    shards = Shards.of(parts, ranks, CPU)
    kept = {weight.dtype for weight in parts.parameters() if isinstance(weight, DTensor)}
    assert kept == {torch.bfloat16, torch.float32}
    with shards.saved_whole(keep=True):
        saved = parts.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(saved[name], weight), name
    torch.distributed.destroy_process_group()


def test_shards_of_bfloat16_weights_with_float32_adapters_have_the_gradients_of_whole_ones(tmp_path):
    ragged(tmp_path / "ragged")
    torch.multiprocessing.spawn(_mixed_main, args=(2, str(tmp_path)), nprocs=2)

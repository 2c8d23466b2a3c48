"""The gradients of a step: plain and cached, in any chunks, over ranks, with frozen parts and dropout."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch.distributed.tensor import DTensor

from muco.core import TurnEncoder
from muco.core.sample import Content, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.distributed.fsdp import Shards
from muco.distributed.ranks import Ranks
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers.small import FAMILIES, SMALL, TEXTS, picture, small

CPU, ALONE = torch.device("cpu"), Ranks()
LONG = "where is it? " * 6


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> ShardReader:
    return ragged(tmp_path_factory.mktemp("ragged"))


def ragged(folder: Path) -> ShardReader:
    """Return samples of one to four turns, with and without image, some with hard negatives."""
    samples = []
    for number in range(7):
        pairs = tuple(
            Pair(
                f"task{turn}",
                (Content(f"{LONG if turn == 1 else 'what'} {number}"),),
                Content(f"a {number} {turn}" if turn else "red"),
                (Content(f"not {number}", (picture("blue", (60, 60)),)),)
                if number == 2 and turn == 0
                else (),
            )
            for turn in range(1 + number % 4)
        )
        images = (picture("red", (56 + 28 * (number % 3), 56)),) if number % 3 else ()
        samples.append(Sample(f"{number}", "ragged", images, pairs))
    write_shards(samples, folder, about={})
    return ShardReader(folder)


def encoder(*, lora: bool = False, **options: object) -> TurnEncoder:
    torch.manual_seed(0)
    config = QwenVL.Config.model_validate({**SMALL, **options})
    backbone = QwenVL.build(config, texts=TEXTS)
    if lora:
        for weight in backbone.parameters():
            weight.requires_grad = False
        adapter = LoraConfig(
            r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        )
        inject_adapter_in_model(adapter, backbone.model.language_model)
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim)).train()


def exact(model: TurnEncoder) -> TurnEncoder:
    """Let the norms compute in the dtype of the weights: transformers rounds to float32 in any."""
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            norm.forward = partial(_rms_norm, norm)
    return model


def _rms_norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def gradients(
    model: TurnEncoder,
    reader: ShardReader,
    *,
    cached: bool,
    budget: int | None,
    context: str,
    dtype: torch.dtype | None = torch.float64,
    ranks=ALONE,
    num_samples=7,
    sharded=False,
) -> tuple[float, dict[str, torch.Tensor]]:
    model = exact(copy.deepcopy(model).to(dtype))  # None leaves every weight in its own
    shards = Shards.of(model, ranks, CPU) if sharded else Shards()
    assert sharded == any(isinstance(weight, DTensor) for weight in model.parameters())
    packer = MultiTurn(MultiTurn.Config(context=context, order="per_sample", system=""))
    batches = StepBatches(
        readers={"ragged": reader},
        sampler=Mixture(Mixture.Config()),
        packer=packer,
        processor=model.backbone.processor,
        global_batch_size=num_samples,
        seed=0,
        chunk_tokens=budget,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
    )
    torch.manual_seed(7)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates="mask"))
    done = Stepper(model, loss, CPU, ranks, shards, cached=cached)(batches[0])
    found = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
    return done.mean, {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}


def same(found, expected, tolerance):
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=tolerance, msg=name)


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

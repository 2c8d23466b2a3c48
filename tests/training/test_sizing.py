"""The memory that is predicted before the first step, against what a step takes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from muco.core import MucoError
from muco.core.turns import EncoderInputs
from muco.distributed.ranks import Ranks
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.samplers.mixture import Mixture
from muco.training import sizing
from muco.training.batches import StepBatches
from muco.training.memory import peak_bytes
from muco.training.sizing import (
    ChunkMemory,
    choose_chunk_tokens,
    choose_held_tokens,
    describe_step,
    measure_chunks,
    predict_memory,
)
from muco.training.step import Stepper
from tests.helpers.gradients import encoder, ragged
from tests.helpers.small import SMALL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return StepBatches(
        readers={"ragged": ragged(tmp_path_factory.mktemp("ragged"))},
        sampler=Mixture(Mixture.Config()),
        packer=MultiTurn(MultiTurn.Config(context="isolated", system="")),
        processor=encoder().backbone.processor,
        global_batch_size=7,
        seed=0,
    )


def stepper(*, grad_cache: bool, **options) -> Stepper:
    return Stepper(
        encoder(**options), MultiTurnInfoNCE(MultiTurnInfoNCE.Config()), CPU, grad_cache=grad_cache
    )


def test_peak_bytes_counts_what_is_held_at_once():
    def work():
        held = torch.zeros(1000, dtype=torch.float64)
        for _ in range(3):
            torch.zeros(500, dtype=torch.float64).add_(held[:500])
        return held.view(10, 100)

    assert peak_bytes(CPU, work) == 8 * 1500


def test_activation_checkpointing_lowers_what_is_predicted(batches):
    plain, fewer = (
        measure_chunks(stepper(grad_cache=True, gradient_checkpointing=each), batches, batches.chunked(1)[0])
        for each in (False, True)
    )
    assert fewer.per_unit < 0.7 * plain.per_unit


def test_peak_bytes_sees_the_backward_pass():
    weight = torch.ones(100, 100, requires_grad=True)
    weight.grad = torch.zeros_like(weight)

    def work():
        (weight * weight).sum().backward()

    assert peak_bytes(CPU, work) >= 2 * weight.nbytes


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("autocast", [nullcontext, bfloat16])
@pytest.mark.parametrize("grad_cache", [True, False])
def test_the_predicted_activations_are_those_of_a_step(batches, grad_cache, autocast):
    """With autocast each chunk that is held has its own copies of the weights, most of its memory here."""
    wide = {**SMALL["random_init"], "hidden_dim": 256} if autocast is bfloat16 else SMALL["random_init"]
    step = replace(stepper(grad_cache=grad_cache, random_init=wide), autocast=autocast)
    memory = measure_chunks(step, batches, batches.chunked(1)[0])
    step(batches.chunked(60)[0])  # gradients exist from now on
    for chunk_tokens in (60, 150, 400):
        inputs = batches.chunked(chunk_tokens)[0]
        step = replace(step, held_tokens=chunk_tokens)
        peak = peak_bytes(CPU, partial(step, inputs))
        assert 0.65 < predict_memory(step, memory, inputs, 0).activations / peak < 1.6


def test_a_device_with_too_little_memory_is_measured_with_smaller_chunks(batches, monkeypatch):
    step, singles = stepper(grad_cache=True), batches.chunked(1)[0]
    longest = max(chunk.size for side in (singles.queries, singles.targets) for chunk in side.chunks)
    plain, dry_run = measure_chunks(step, batches, singles), Stepper.dry_run

    def measured_up_to(limit: int) -> ChunkMemory | None:
        def limited(step: Stepper, chunk: EncoderInputs) -> int:
            if chunk.size > limit:
                raise torch.OutOfMemoryError
            return dry_run(step, chunk)

        monkeypatch.setattr(Stepper, "dry_run", limited)
        return measure_chunks(step, batches, singles)

    for limit in (3 * longest, longest):
        assert measured_up_to(limit).of(longest) == pytest.approx(plain.of(longest), rel=0.3)
    memory = measured_up_to(longest - 1)
    assert memory is None
    with pytest.raises(MucoError, match=f"has {longest} tokens or patches. It needs more memory than"):
        choose_chunk_tokens(step, memory, singles, 0)


@pytest.mark.parametrize("options", [{}, {"lora": True}])
def test_measuring_changes_nothing(batches, options):
    step = stepper(grad_cache=True, **options)
    before = {name: value.clone() for name, value in step.encoder.state_dict().items()}
    measure_chunks(step, batches, batches.chunked(1)[0])
    for name, value in step.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(weight.grad is not None and weight.grad.any() for weight in step.parameters())


def test_auto_takes_what_fits_and_no_more_than_the_batch(batches, monkeypatch):
    step = stepper(grad_cache=True)
    memory = measure_chunks(step, batches, batches.chunked(1)[0])
    singles = batches.chunked(1)[0]
    full_batch = sum(chunk.size for side in (singles.queries, singles.targets) for chunk in side.chunks)
    assert full_batch <= choose_chunk_tokens(step, memory, singles, 0) < full_batch + 256
    predicted = predict_memory(step, memory, singles, 0)
    other = predicted.total() - predicted.activations

    def with_room_for(size):
        monkeypatch.setattr(sizing, "available_bytes", lambda _: int((memory.of(size) + other) / 0.8))
        return choose_chunk_tokens(step, memory, singles, 0)

    assert with_room_for(300) == 256
    with pytest.raises(MucoError, match="the longest dialogue of the first batch"):
        with_room_for(-10_000)


def test_auto_holds_the_chunks_that_fit(batches, monkeypatch):
    step, singles, chunk_tokens = stepper(grad_cache=True), batches.chunked(1)[0], 60
    memory = measure_chunks(step, batches, singles)
    predicted = predict_memory(step, memory, singles, 0)
    loaded = sum(weight.nbytes for weight in step.parameters())
    other = predicted.total() - predicted.activations - loaded

    def held_with_room_for(num_chunks: float) -> int:
        bytes_ = memory.of(chunk_tokens) * num_chunks + memory.fixed + other
        monkeypatch.setattr(sizing, "available_bytes", lambda _: bytes_ / 0.8)
        return choose_held_tokens(step, memory, singles, 0, chunk_tokens=chunk_tokens)

    assert [held_with_room_for(each) for each in (0.5, 1.5, 3.5)] == [60, 60, 180]
    chunks = [chunk for side in (singles.queries, singles.targets) for chunk in side.chunks]
    assert len(replace(step, held_tokens=held_with_room_for(1000)).held(chunks)) == len(chunks)


def test_describes_a_step(batches):
    step = stepper(grad_cache=True)
    inputs = batches.chunked(150)[0]
    text = "\n".join(describe_step(inputs, step, Ranks()))
    pairs = len(inputs.queries.ids)
    targets = inputs.targets.ids
    others = [
        int(((targets.sample_ids != sample) | targets.is_negative).sum())
        for sample in inputs.queries.ids.sample_ids
    ]
    assert f"7 samples, {pairs} pairs, {sum(others) / pairs:.0f} negatives a query" in text
    chunks = inputs.queries.chunks + inputs.targets.chunks
    assert f"{len(chunks)} chunks, the largest of {max(chunk.size for chunk in chunks)} tokens" in text
    assert f"{len(chunks) - 1} encoded twice" in text
    assert "0% padding" in text

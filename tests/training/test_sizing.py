"""What a step is said to take before the first one, against what it takes."""

from __future__ import annotations

import pytest
import torch

from muco.core import MucoError
from muco.distributed.ranks import Ranks
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.samplers.mixture import Mixture
from muco.training import sizing
from muco.training.batches import StepBatches
from muco.training.memory import peak_bytes
from muco.training.sizing import choose_budget, describe, predict, rehearse
from muco.training.step import Stepper
from tests.helpers.gradients import encoder, ragged

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


def stepper(*, cached: bool, **options) -> Stepper:
    return Stepper(encoder(**options), MultiTurnInfoNCE(MultiTurnInfoNCE.Config()), CPU, cached=cached)


def test_peak_bytes_counts_what_is_held_at_once():
    def work():
        held = torch.zeros(1000, dtype=torch.float64)
        for _ in range(3):
            torch.zeros(500, dtype=torch.float64).add_(held[:500])
        return held.view(10, 100)

    assert peak_bytes(CPU, work) == 8 * 1500


def test_activation_checkpointing_lowers_what_is_predicted(batches):
    plain, fewer = (
        rehearse(stepper(cached=True, gradient_checkpointing=each), batches, batches.chunked(1)[0])
        for each in (False, True)
    )
    assert fewer.per_unit < 0.7 * plain.per_unit


def test_peak_bytes_sees_the_backward_pass():
    weight = torch.ones(100, 100, requires_grad=True)
    weight.grad = torch.zeros_like(weight)

    def work():
        (weight * weight).sum().backward()

    assert peak_bytes(CPU, work) >= 2 * weight.nbytes


@pytest.mark.parametrize("budget", [60, 150, 400])
@pytest.mark.parametrize("cached", [True, False])
def test_the_predicted_activations_are_those_of_a_step(batches, budget, cached):
    step = stepper(cached=cached)
    memory = rehearse(step, batches, batches.chunked(1)[0])
    inputs = batches.chunked(budget)[0]
    step(inputs)  # gradients are there from now on
    found = peak_bytes(CPU, lambda: step(inputs))
    assert predict(step, memory, inputs, 0).chunks == pytest.approx(found, rel=0.35)


@pytest.mark.parametrize("options", [{}, {"freeze_vision": True}, {"lora": True}])
def test_a_rehearsal_changes_nothing(batches, options):
    step = stepper(cached=True, **options)
    before = {name: value.clone() for name, value in step.encoder.state_dict().items()}
    rehearse(step, batches, batches.chunked(1)[0])
    for name, value in step.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(weight.grad is not None and weight.grad.any() for weight in step.parameters())


def test_auto_takes_what_fits_and_no_more_than_the_batch(batches, monkeypatch):
    step = stepper(cached=True)
    memory = rehearse(step, batches, batches.chunked(1)[0])
    singles = batches.chunked(1)[0]
    whole = max(sum(map(sizing.size_of, side.chunks)) for side in (singles.queries, singles.targets))
    ample = choose_budget(step, memory, singles, 0)
    assert whole <= ample < whole + 256
    held = predict(step, memory, singles, 0)
    beside = held.total() - held.chunks

    def with_room_for(size):
        monkeypatch.setattr(sizing, "available_bytes", lambda _: int((memory.of(size) + beside) / 0.8))
        return choose_budget(step, memory, singles, 0)

    assert with_room_for(300) == 256
    with pytest.raises(MucoError, match="the longest dialogue of the first batch"):
        with_room_for(-10_000)


def test_the_arithmetic_in_words(batches):
    step = stepper(cached=True)
    inputs = batches.chunked(150)[0]
    told = "\n".join(describe(inputs, step, Ranks()))
    pairs = len(inputs.queries.ids)
    targets = inputs.targets.ids
    others = [
        int(((targets.sample_ids != sample) | targets.is_negative).sum())
        for sample in inputs.queries.ids.sample_ids
    ]
    assert f"7 samples, {pairs} pairs, {sum(others) / pairs:.0f} negatives a query" in told
    chunks = inputs.queries.chunks + inputs.targets.chunks
    assert f"{len(chunks)} chunks, the largest of {max(map(sizing.size_of, chunks))} tokens" in told
    assert "0% padding" in told

"""Turns that do not fit into a dialogue's budget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muco.core import Content, Dialogue, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.reconstruction import Reconstruction
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.samplers.mixture import Mixture
from muco.training.batches import StepBatches
from muco.training.dialogue_budget import drop_overlong_turns
from tests.helpers.small import SMALL, TEXTS

PACKERS = [
    SingleTurn(SingleTurn.Config(turns="all")),
    MultiTurn(MultiTurn.Config()),
    MultiTurn(MultiTurn.Config(context="isolated")),
    Reconstruction(Reconstruction.Config(turns="all")),
]


def count(dialogue: Dialogue) -> int:
    """A word is a token here."""
    texts = [message.content.text for turn in dialogue.turns for message in turn.messages]
    return sum(len(text.split()) for text in texts)


def sample_of(lengths: list[tuple[int, int, int]]) -> Sample:
    """Return a sample whose queries, targets and negatives have so many words."""
    pairs = tuple(
        Pair("t", (Content("q " * query),), Content("t " * target), (Content("n " * negative),))
        for query, target, negative in lengths
    )
    return Sample("0", "data", (), pairs)


def packed(packer, sample: Sample):
    return packer.pack(sample, batch_random=random.Random(0), sample_random=random.Random(0))


def keys(dialogues) -> list[tuple[int, int]]:
    return sorted((turn.key.turn_id, turn.key.form_id) for each in dialogues for turn in each.turns)


@pytest.mark.parametrize("packer", PACKERS, ids=lambda packer: type(packer).__name__)
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=1, max_size=5),
    max_tokens=st.integers(1, 120),
)
def test_what_is_left_fits_and_both_sides_keep_the_same_turns_whole(packer, lengths, max_tokens):
    whole = packed(packer, sample_of(lengths))
    fitted = drop_overlong_turns(whole, max_tokens=max_tokens, count=count)
    if fitted.pair is None:
        longest: dict[int, int] = {}
        for dialogue in whole.queries + whole.targets:
            for turn in (turn for turn in dialogue.turns if turn.key.form_id == 0):
                separate = count(Dialogue("", (), (turn,)))
                longest[turn.key.turn_id] = max(separate, longest.get(turn.key.turn_id, 0))
        assert min(longest.values()) > max_tokens, "a pair that fits alone was dropped"
        return
    left = fitted.pair
    assert all(count(dialogue) <= max_tokens for dialogue in left.queries + left.targets + left.negatives)
    assert keys(left.queries) == keys(left.targets)
    assert {turn for turn, _ in keys(left.negatives)} <= {turn for turn, _ in keys(left.queries)}
    assert {(turn, 0) for turn, _ in keys(left.queries)} <= set(keys(left.queries)), "no second form alone"
    texts = {turn.messages for each in whole.queries + whole.targets for turn in each.turns}
    assert {turn.messages for each in left.queries + left.targets for turn in each.turns} <= texts
    if fitted.num_dropped == 0:
        assert left == whole


def test_a_turn_that_does_not_fit_makes_room_for_those_after_it():
    sample = sample_of([(3, 1, 1), (50, 1, 1), (3, 1, 1), (3, 40, 1)])
    fitted = drop_overlong_turns(
        packed(MultiTurn(MultiTurn.Config(order="fixed")), sample), max_tokens=10, count=count
    )
    assert fitted.pair is not None
    assert keys(fitted.pair.queries) == keys(fitted.pair.targets) == [(0, 0), (2, 0)]
    assert keys(fitted.pair.negatives) == [(0, 0), (2, 0)]
    assert fitted.num_dropped == 2


def test_only_a_hard_negative_that_is_too_long_is_dropped():
    fitted = drop_overlong_turns(
        packed(PACKERS[0], sample_of([(3, 1, 20), (3, 1, 2)])), max_tokens=10, count=count
    )
    assert fitted.pair is not None
    assert keys(fitted.pair.queries) == [(0, 0), (1, 0)]
    assert keys(fitted.pair.negatives) == [(1, 0)]
    assert fitted.num_dropped == 1


@pytest.mark.parametrize("max_dialogue_tokens", [None, 60])
def test_a_step_renders_each_dialogue_once(tmp_path, monkeypatch, max_dialogue_tokens):
    texts = ("what?", "where is it?", "where is the red circle? " * 30)
    pairs = tuple(Pair("a", (Content(text),), Content(f"it, {text[:5]}")) for text in texts)
    write_shards((Sample(f"{n}", "d", (), pairs) for n in range(4)), tmp_path / "shards", metadata={})
    rendered: list[Dialogue] = []
    processor = QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).processor
    render = type(processor).render
    monkeypatch.setattr(
        type(processor), "render", lambda self, dialogue: rendered.append(dialogue) or render(self, dialogue)
    )
    StepBatches(
        readers={"d": ShardReader(tmp_path / "shards")},
        sampler=Mixture(Mixture.Config()),
        packer=MultiTurn(MultiTurn.Config()),
        processor=processor,
        global_batch_size=4,
        seed=0,
        chunk_tokens=200,
        max_dialogue_tokens=max_dialogue_tokens,
    )[0]
    assert rendered
    assert len(rendered) == len(set(rendered))


def test_a_step_counts_what_the_backbones_tokens_leave_out(tmp_path):
    long = Content("where is the red circle? " * 30)
    samples = [
        Sample(
            f"{n}", "d", (), (Pair("a", (Content("what?"),), Content("it")), Pair("b", (long,), Content("x")))
        )
        for n in range(3)
    ]
    samples.append(Sample("3", "d", (), (Pair("b", (long,), Content("y")),)))
    write_shards(samples, tmp_path / "shards", metadata={})
    processor = QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).processor

    def step(max_dialogue_tokens):
        return StepBatches(
            readers={"d": ShardReader(tmp_path / "shards")},
            sampler=Mixture(Mixture.Config()),
            packer=MultiTurn(MultiTurn.Config()),
            processor=processor,
            global_batch_size=4,
            seed=0,
            max_dialogue_tokens=max_dialogue_tokens,
        )[0]

    assert (len(step(None).queries.ids), step(None).num_dropped) == (7, 0)
    short = step(60)
    assert (len(short.queries.ids), short.num_dropped) == (3, 4)
    assert len(short.samples) == 3
    assert all(chunk.num_tokens <= 3 * 60 for side in (short.queries, short.targets) for chunk in side.chunks)

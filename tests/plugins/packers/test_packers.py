"""What the packers make of a sample: who asks what, who answers, in which order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from muco.core import Content, Dialogue, DialoguePair, Message, Packer, Pair, Sample, TurnKey, stable_id
from muco.data.shards.reader import ShardReader
from muco.plugins.packers.base import SYSTEM
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.single_turn import SingleTurn
from muco.testing import check_packer
from tests.helpers.small import picture

RED, BLUE, GREEN = (picture(colour, (8, 8)) for colour in ("red", "blue", "green"))

SETTINGS = [
    ("single_turn", {}),
    ("single_turn", {"turns": "all", "system": ""}),
    ("multi_turn", {}),
    ("multi_turn", {"order": "fixed", "system": ""}),
    ("multi_turn", {"order": "per_batch", "max_turns": 3}),
    ("multi_turn", {"targets": "independent"}),
    ("multi_turn", {"context": "isolated"}),
    ("multi_turn", {"context": "isolated", "targets": "independent", "max_turns": 1}),
]
ORDERS = ["per_sample", "per_batch", "fixed"]


def single_turn(**settings) -> SingleTurn:
    return SingleTurn(SingleTurn.Config(**settings))


def multi_turn(**settings) -> MultiTurn:
    return MultiTurn(MultiTurn.Config(**settings))


def sample_of(num_pairs: int, *, name: str = "0", images=(RED,), paraphrases: int = 1) -> Sample:
    """Return a sample whose texts say which pair they belong to; pair 1 asks with an image of its own."""
    pairs = tuple(
        Pair(
            f"task {pair}",
            tuple(
                Content(f"query {pair} wording {wording}", (BLUE,) if pair == 1 else ())
                for wording in range(paraphrases)
            ),
            Content(f"target {pair}", (GREEN,) if pair == 0 else ()),
        )
        for pair in range(num_pairs)
    )
    return Sample(name, "data", images, pairs)


def pack(packer: Packer, sample: Sample, *, batch: int = 0, own: int = 0) -> DialoguePair:
    return packer.pack(sample, batch_random=random.Random(batch), sample_random=random.Random(own))


def keys(dialogues: tuple[Dialogue, ...]) -> list[TurnKey]:
    return [turn.key for dialogue in dialogues for turn in dialogue.turns]


def order(packed: DialoguePair) -> list[int]:
    return [key.turn_id for key in keys(packed.queries)]


def contents_of(dialogues: tuple[Dialogue, ...]) -> list[Content]:
    return [turn.messages[0].content for dialogue in dialogues for turn in dialogue.turns]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_keeps_the_contract(registry, shards, name, settings):
    reader = ShardReader(shards)
    check_packer(registry, name, settings, samples=[reader[number] for number in range(12)])


PACKERS = [
    single_turn(**settings) if name == "single_turn" else multi_turn(**settings)
    for name, settings in SETTINGS
]


@pytest.mark.parametrize("packer", PACKERS, ids=map(str, SETTINGS))
@given(num_pairs=st.integers(1, 8), batch=st.integers(0, 99), own=st.integers(0, 99))
def test_a_query_and_its_target_share_the_identity_of_their_pair(packer, num_pairs, batch, own):
    sample = sample_of(num_pairs)
    packed = pack(packer, sample, batch=batch, own=own)
    assert keys(packed.queries) == keys(packed.targets)
    assert len(set(order(packed))) == len(order(packed))
    for key, query, target in zip(
        keys(packed.queries), contents_of(packed.queries), contents_of(packed.targets), strict=True
    ):
        pair = sample.pairs[key.turn_id]
        assert query.text in [each.text for each in pair.queries]
        assert target.text == pair.target.text
        assert key == TurnKey(
            sample_id=stable_id("data", "0"),
            turn_id=key.turn_id,
            group_id=sample.group_id,
            content_id=pair.target.content_id,
            task_id=stable_id("data", pair.task),
        )


@pytest.mark.parametrize("packer", PACKERS, ids=map(str, SETTINGS))
def test_a_turn_is_a_single_message_of_the_user(packer):
    packed = pack(packer, sample_of(4))
    for dialogue in packed.queries + packed.targets:
        assert dialogue.system == packer.system
        for turn in dialogue.turns:
            assert [message.role for message in turn.messages] == ["user"]


# single_turn


@given(num_pairs=st.integers(1, 6), own=st.integers(0, 99))
def test_single_turn_asks_one_pair_or_all_in_order(num_pairs, own):
    sample = sample_of(num_pairs)
    assert len(order(pack(single_turn(), sample, own=own))) == 1
    every = pack(single_turn(turns="all"), sample, own=own)
    assert order(every) == list(range(num_pairs))
    assert all(len(dialogue.turns) == 1 for dialogue in every.queries + every.targets)


def test_single_turn_draws_every_pair_about_equally_often():
    drawn = Counter(order(pack(single_turn(), sample_of(4), own=own))[0] for own in range(400))
    assert sorted(drawn) == [0, 1, 2, 3]
    assert min(drawn.values()) > 60


def test_single_turn_puts_all_images_before_the_text():
    packed = pack(single_turn(turns="all"), sample_of(2))
    assert [dialogue.images for dialogue in packed.queries] == [(RED,), (RED, BLUE)]
    assert [dialogue.images for dialogue in packed.targets] == [(GREEN,), ()]
    assert not any(content.images for content in contents_of(packed.queries) + contents_of(packed.targets))


# multi_turn


def test_multi_turn_pays_for_the_image_once():
    """The sample's images are the shared prefix; a turn's own image stays in the turn."""
    packed = pack(multi_turn(order="fixed"), sample_of(3, images=(RED, GREEN)))
    (query,) = packed.queries
    assert query.images == (RED, GREEN)
    assert query.turns[1].messages == (Message("user", Content("query 1 wording 0", (BLUE,))),)
    assert [content.images for content in contents_of(packed.queries)] == [(), (BLUE,), ()]


def test_multi_turn_targets_are_one_dialogue_or_one_each():
    sample = sample_of(3)
    (dialogue,) = pack(multi_turn(order="fixed"), sample).targets
    assert dialogue.images == ()
    assert [content.images for content in contents_of((dialogue,))] == [(GREEN,), (), ()]
    separate = pack(multi_turn(order="fixed", targets="independent"), sample).targets
    assert [len(dialogue.turns) for dialogue in separate] == [1, 1, 1]
    assert [dialogue.images for dialogue in separate] == [(GREEN,), (), ()]
    assert separate == pack(multi_turn(order="fixed", context="isolated"), sample).targets


def test_independent_targets_equal_those_of_single_turn():
    """So that a loss may merge equal targets, and a candidate is encoded as it was trained."""
    sample = sample_of(3)
    separate = pack(multi_turn(order="fixed", targets="independent"), sample).targets
    assert separate == pack(single_turn(turns="all"), sample).targets
    searched = [multi_turn().inference(pair.target) for pair in sample.pairs]
    assert [each.content_key for each in separate] == [each.content_key for each in searched]


@pytest.mark.parametrize("context", ["causal", "isolated"])
def test_the_context_is_that_of_the_queries(context):
    packed = pack(multi_turn(context=context), sample_of(3))
    assert {dialogue.context for dialogue in packed.queries} == {context}


@given(num_pairs=st.integers(1, 8), batch=st.integers(0, 99), own=st.integers(0, 99))
def test_order_per_batch_is_one_permutation_for_samples_of_one_length(num_pairs, batch, own):
    packer = multi_turn(order="per_batch")
    one = order(pack(packer, sample_of(num_pairs, name="one"), batch=batch, own=own))
    other = order(pack(packer, sample_of(num_pairs, name="other"), batch=batch, own=own + 1))
    assert one == other
    assert sorted(one) == list(range(num_pairs))


@given(num_pairs=st.integers(1, 8), batch=st.integers(0, 99), own=st.integers(0, 99))
def test_order_per_sample_depends_only_on_the_sample(num_pairs, batch, own):
    packer = multi_turn(order="per_sample")
    order_of_turns = order(pack(packer, sample_of(num_pairs), batch=batch, own=own))
    assert order_of_turns == order(pack(packer, sample_of(num_pairs), batch=batch + 1, own=own))
    assert sorted(order_of_turns) == list(range(num_pairs))


def test_order_fixed_is_that_of_the_data():
    for own in range(20):
        assert order(pack(multi_turn(order="fixed"), sample_of(5), own=own)) == [0, 1, 2, 3, 4]
        drawn = order(pack(multi_turn(order="fixed", max_turns=3), sample_of(5), own=own))
        assert drawn == sorted(drawn)
        assert len(drawn) == 3


def test_orders_differ_between_samples_and_between_batches():
    by_sample = {tuple(order(pack(multi_turn(), sample_of(6), own=own))) for own in range(20)}
    by_batch = {
        tuple(order(pack(multi_turn(order="per_batch"), sample_of(6), batch=batch))) for batch in range(20)
    }
    assert len(by_sample) > 15
    assert len(by_batch) > 15


@pytest.mark.parametrize("how", ORDERS)
def test_max_turns_draws_every_turn_about_equally_often(how):
    packer = multi_turn(order=how, max_turns=2)
    drawn = Counter()
    for visit in range(300):
        order_of_turns = order(pack(packer, sample_of(5), batch=visit, own=visit))
        assert len(order_of_turns) == 2
        drawn.update(order_of_turns)
    assert sorted(drawn) == [0, 1, 2, 3, 4]
    assert min(drawn.values()) > 80
    assert len(order(pack(packer, sample_of(1)))) == 1


# Both


@pytest.mark.parametrize("packer", [single_turn(turns="all"), multi_turn(), multi_turn(order="per_batch")])
def test_paraphrases_are_drawn(packer):
    drawn = Counter(
        content.text[-1]
        for visit in range(100)
        for content in contents_of(pack(packer, sample_of(3, paraphrases=3), own=visit).queries)
    )
    assert sorted(drawn) == ["0", "1", "2"]
    assert min(drawn.values()) > 60


@pytest.mark.parametrize("packer", PACKERS, ids=map(str, SETTINGS))
@given(batch=st.integers(0, 2**64), own=st.integers(0, 2**64), other=st.integers(0, 2**64))
def test_the_result_depends_only_on_the_seeds(packer, batch, own, other):
    sample = sample_of(6, paraphrases=2)
    expected = pack(packer, sample, batch=batch, own=own)
    random.seed(other)
    pack(packer, sample_of(3), batch=other, own=other)
    assert pack(packer, sample, batch=batch, own=own) == expected


@pytest.mark.parametrize("packer", PACKERS, ids=map(str, SETTINGS))
def test_inference_uses_the_words_of_training(packer):
    dialogue = packer.inference(Content("a red circle", (RED,)))
    assert (dialogue.system, dialogue.images) == (packer.system, (RED,))
    assert contents_of((dialogue,)) == [Content("a red circle")]


@pytest.mark.parametrize(
    ("cls", "settings", "needs", "offers"),
    [
        (SingleTurn, {}, set(), {"independent_targets"}),
        (SingleTurn, {"turns": "all"}, set(), {"independent_targets"}),
        (MultiTurn, {}, {"causal_context"}, set()),
        (MultiTurn, {"targets": "dialogue"}, {"causal_context"}, set()),
        (MultiTurn, {"targets": "independent"}, {"causal_context"}, {"independent_targets"}),
        (MultiTurn, {"context": "isolated"}, {"isolated_turns"}, {"independent_targets"}),
    ],
)
def test_what_a_packer_needs_and_offers_follows_from_its_settings(cls, settings, needs, offers):
    config = cls.Config(**settings)
    assert cls.needs(config) == needs
    assert cls.offers(config) == offers


@pytest.mark.parametrize(
    "settings", [{"context": "isolated", "targets": "dialogue"}, {"max_turns": 0}, {"order": "random"}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        MultiTurn.Config(**settings)


@pytest.mark.parametrize("packer", [single_turn(turns="all"), multi_turn(), multi_turn(context="isolated")])
def test_each_hard_negative_is_a_dialogue_of_its_own(packer):
    pairs = tuple(
        Pair(f"task {n}", (Content(f"query {n}"),), Content(f"target {n}"), wrong)
        for n, wrong in enumerate([(Content("a bicycle"), Content("so", (BLUE,)), Content("", (RED,))), ()])
    )
    packed = pack(packer, Sample("0", "data", (RED,), pairs))
    assert [dialogue.images for dialogue in packed.negatives] == [(), (BLUE,), (RED,)]
    assert [content.text for content in contents_of(packed.negatives)] == ["a bicycle", "so", ""]
    for key, wrong in zip(keys(packed.negatives), pairs[0].negatives, strict=True):
        assert (key.turn_id, key.is_negative, key.content_id) == (0, True, wrong.content_id)
    searched = [packer.inference(wrong) for wrong in pairs[0].negatives]
    assert [each.content_key for each in packed.negatives] == [each.content_key for each in searched]


@pytest.mark.parametrize("cls", [SingleTurn, MultiTurn])
def test_hard_negatives_can_be_fewer_drawn_anew(cls):
    wrong = tuple(Content(f"wrong {n}") for n in range(5))
    sample = Sample("0", "data", (), (Pair("task", (Content("query"),), Content("target"), wrong),))
    made = cls(cls.Config(max_negatives=2))
    drawn = Counter()
    for own in range(200):
        found = [content.text for content in contents_of(pack(made, sample, own=own).negatives)]
        assert len(set(found)) == 2
        drawn.update(found)
    assert len(drawn) == 5
    assert min(drawn.values()) > 50
    assert len(pack(cls(cls.Config(max_negatives=9)), sample).negatives) == 5
    assert pack(cls(cls.Config(max_negatives=0)), sample).negatives == ()


def test_the_system_text_is_that_of_the_public_weights():
    assert multi_turn().system == single_turn().system == SYSTEM

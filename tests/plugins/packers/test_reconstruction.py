"""Stage 2's dialogues: the second turn, its masks, and what training sees."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muco.core import Content, Message, Pair, Sample, TurnEncoder
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.decoder.chat import EMB, MASK, Markup, UserText, pieces_of
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.plugins.packers.reconstruction import PROMPTS, REWRITE, Reconstruction
from muco.plugins.poolers.turn_token import TurnToken
from muco.plugins.samplers.mixture import Mixture
from muco.testing import check_packer
from muco.training.batches import StepBatches
from muco.training.step import Stepper
from tests.helpers.small import SMALL, TEXTS, picture

RED, BLUE = picture("red", (56, 56)), picture("blue", (56, 84))

SAMPLE = Sample(
    "0",
    "data",
    (RED,),
    (
        Pair(
            "caption",
            (Content("Find the same place by day."),),
            Content("a red disc", (BLUE,), "A blue disc, rather large."),
            (Content("a bicycle"), Content("not this", (RED,))),
        ),
    ),
    caption="A small red disc.",
)


def packer(**settings) -> Reconstruction:
    return Reconstruction(Reconstruction.Config(**settings))


def pack(made: Reconstruction, sample: Sample = SAMPLE, *, own: int = 0):
    return made.pack(sample, batch_random=random.Random(0), sample_random=random.Random(own))


def masked_text(message: Message) -> str:
    """Return the text of a message, with `<|mask|>` for each blank."""
    text, start, parts = message.content.text, 0, []
    for blank in message.blanks:
        parts += [text[start:blank], MASK]
        start = blank
    return "".join([*parts, text[start:]])


def counterparts(made: Reconstruction, sample: Sample = SAMPLE, *, own: int = 0) -> tuple[str, str]:
    """Return what the query's and the target's second turn show of the other side."""
    packed = pack(made, sample, own=own)
    (query,), (target,) = packed.queries, packed.targets
    return masked_text(query.turns[1].messages[1]), masked_text(target.turns[1].messages[1])


@pytest.mark.parametrize(
    "settings",
    [{}, {"turns": "all"}, {"prompt": "none", "captions": False, "mask_ratio": 0.25, "max_negatives": 1}],
)
def test_keeps_the_contract(registry, shards, settings):
    reader = ShardReader(shards)
    check_packer(registry, "reconstruction", settings, samples=[reader[number] for number in range(12)])


def test_each_side_answers_plainly_and_then_again():
    packed = pack(packer(mask_ratio=0, full_mask_share=0))
    (query,), (target,) = packed.queries, packed.targets
    assert [query.images, target.images] == [(RED,), (BLUE,)]
    assert {query.context, target.context} == {"causal"}
    for dialogue, own in ((query, "Find the same place by day."), (target, "a red disc")):
        plain, again = dialogue.turns
        assert plain.messages == (Message("user", Content(own)),)
        assert [message.role for message in again.messages] == ["user", "assistant", "user"]
        assert again.messages[0].content.text == REWRITE
        assert again.messages[2].content.text == PROMPTS["reconstruct"]
        assert (plain.key.form_id, again.key.form_id) == (0, 1)
        assert (plain.key.sample_id, plain.key.turn_id) == (again.key.sample_id, again.key.turn_id)
    assert [turn.key for turn in query.turns] == [turn.key for turn in target.turns]


def test_a_caption_replaces_an_image_of_the_counterpart():
    assert counterparts(packer(mask_ratio=0, full_mask_share=0)) == (
        "Image description: A blue disc, rather large.\na red disc\n",
        "Image description: A small red disc.\nFind the same place by day.\n",
    )


def test_an_image_without_a_caption_becomes_a_mask():
    shown = (f"{MASK} a red disc\n", f"{MASK} Find the same place by day.\n")
    assert counterparts(packer(mask_ratio=0, full_mask_share=0, captions=False)) == shown
    silent = Sample("1", "data", (RED,), (Pair("t", (Content("what?"),), Content(images=(BLUE,))),))
    assert counterparts(packer(mask_ratio=0, full_mask_share=0), silent) == (MASK, f"{MASK} what?\n")


def test_captions_of_the_sample_and_of_the_query_come_in_the_order_of_their_images():
    pair = Pair("t", (Content("which?", (BLUE,), "The second."),), Content("both"))
    sample = Sample("1", "data", (RED,), (pair,), caption="The first.")
    shown = counterparts(packer(mask_ratio=0, full_mask_share=0), sample)
    assert shown == ("both\n", "Image description: The first.\nThe second.\nwhich?\n")


@given(own=st.integers(0, 2**64), ratio=st.floats(0, 1))
def test_masks_stand_for_runs_of_words(own, ratio):
    plain = counterparts(packer(mask_ratio=0, full_mask_share=0))
    for shown, whole in zip(
        counterparts(packer(mask_ratio=ratio, full_mask_share=0), own=own), plain, strict=True
    ):
        assert f"{MASK} {MASK}" not in shown
        words = iter(whole.split(" "))
        assert all(word in words for word in shown.split(" ") if word != MASK), "words stay in their order"
        assert shown.count(MASK) + len(shown.replace(MASK, "").split()) > 0


@pytest.mark.parametrize(
    ("settings", "expected"), [({"full_mask_share": 1}, 1), ({"full_mask_share": 0.25}, 0.25)]
)
def test_a_share_of_the_counterparts_is_a_single_mask(settings, expected):
    made = packer(mask_ratio=0, **settings)
    shown = [side == MASK for own in range(400) for side in counterparts(made, own=own)]
    assert sum(shown) / len(shown) == pytest.approx(expected, abs=0.06)
    both = Counter(zip(shown[::2], shown[1::2], strict=True))
    assert both[True, True] / 400 == pytest.approx(expected**2, abs=0.06), "both sides draw for themselves"


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_ratio_is_that_of_the_words(ratio):
    long = Sample("1", "data", (), (Pair("t", (Content("w " * 99 + "w"),), Content("v " * 99 + "v")),))
    kept = [
        len(side.replace(MASK, "").split())
        for own in range(20)
        for side in counterparts(packer(mask_ratio=ratio, full_mask_share=0), long, own=own)
    ]
    assert 1 - sum(kept) / (100 * len(kept)) == pytest.approx(ratio, abs=0.03)


def test_the_prompt_can_be_another_or_none():
    query = {
        prompt: pack(packer(prompt=prompt)).queries[0].turns[1].messages[2:]
        for prompt in ("reconstruct", "rephrase", "none")
    }
    assert query["none"] == ()
    assert query["rephrase"][0].content.text == PROMPTS["rephrase"] != PROMPTS["reconstruct"]


def test_hard_negatives_are_plain_turns_of_their_own():
    negatives = pack(packer()).negatives
    assert [dialogue.images for dialogue in negatives] == [(), (RED,)]
    assert [len(dialogue.turns) for dialogue in negatives] == [1, 1]
    assert {turn.key.form_id for dialogue in negatives for turn in dialogue.turns} == {0}


def test_other_seeds_mask_other_words():
    made = packer(full_mask_share=0)
    assert len({counterparts(made, own=own) for own in range(30)}) > 20
    assert counterparts(made, own=7) == counterparts(made, own=7)


@pytest.mark.parametrize("template", ["chatml", "chatml_public", "bare"])
def test_a_mask_is_a_token_and_what_a_text_calls_one_is_not(template):
    pair = Pair("t", (Content("what?"),), Content(f"user's {MASK} text"))
    (query,) = pack(packer(mask_ratio=0, full_mask_share=0), Sample("1", "data", (), (pair,))).queries
    pieces = pieces_of(query, template).turns[1]
    assert UserText(f"user's {MASK} text\n") in pieces
    assert Markup(MASK) not in pieces
    (query,) = pack(packer(full_mask_share=1)).queries
    assert pieces_of(query, template).turns[1].count(Markup(MASK)) == 1


@pytest.mark.parametrize(("template", "closed"), [("chatml", "<|im_end|>"), ("chatml_public", "")])
def test_chatml_writes_the_second_turn_as_the_model_would_have(template, closed):
    """The public code's template lacks one `<|im_end|>`, before what the assistant says."""
    (query,) = pack(packer(full_mask_share=1)).queries
    written = "".join(piece.text for piece in pieces_of(query, template).turns[1])
    assert written == (
        f"\n<|im_start|>user\n{REWRITE}{closed}\n<|im_start|>assistant\n{MASK}<|im_end|>\n"
        f"<|im_start|>user\n{PROMPTS['reconstruct']}<|im_end|>\n<|im_start|>assistant\n{EMB}<|im_end|>"
    )


# With a model


@pytest.fixture(scope="module")
def encoder() -> TurnEncoder:
    torch.manual_seed(0)
    backbone = QwenVL.build(QwenVL.Config.model_validate({**SMALL, "template": "chatml"}), texts=TEXTS)
    return TurnEncoder(backbone, TurnToken(TurnToken.Config(), hidden_dim=backbone.hidden_dim))


def test_the_first_embedding_is_that_of_inference(encoder):
    made = packer()
    packed, pair = pack(made), SAMPLE.pairs[0]
    query = Content(pair.queries[0].text, SAMPLE.images)
    prepare = encoder.backbone.processor.prepare
    with torch.no_grad():
        trained = encoder(prepare([*packed.queries, *packed.targets])).vectors[[0, 2]]
        used = encoder(prepare([made.inference(query), made.inference(pair.target)])).vectors
    torch.testing.assert_close(trained, used, rtol=0, atol=1e-5)


@pytest.mark.parametrize("forms", ["joint", "separate"])
def test_training_on_a_batch_lowers_its_loss(encoder, tmp_path, forms):
    samples = [
        Sample(f"{n}", "d", (picture(c, (56, 56)),), (Pair("t", (Content(f"what is {n}?"),), Content(c)),))
        for n, c in enumerate(("red", "blue", "green", "black"))
    ]
    write_shards(samples, tmp_path / "shards", metadata={})
    batches = StepBatches(
        readers={"d": ShardReader(tmp_path / "shards")},
        sampler=Mixture(Mixture.Config()),
        packer=packer(),
        processor=encoder.backbone.processor,
        global_batch_size=4,
        seed=0,
    )
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, forms=forms))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    step, values = Stepper(encoder, loss, torch.device("cpu")), []
    for _ in range(4):
        optimizer.zero_grad()
        done = step(batches[0])
        values.append(done.mean)
        optimizer.step()
    assert done.num_turns == 8, "two forms of four queries"
    assert values[-1] < values[0]


def test_the_text_keeps_its_last_line_break_unless_its_last_word_is_masked():
    packed = [pack(packer(mask_ratio=0.5, full_mask_share=0.0), own=own).queries[0] for own in range(20)]
    shown = [masked_text(dialogue.turns[1].messages[1]) for dialogue in packed]
    ends = {text.endswith(MASK): text for text in shown}
    assert set(ends) == {True, False}
    assert all(text.endswith((MASK, "disc\n")) for text in shown)

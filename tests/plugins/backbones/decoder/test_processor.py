"""Text of the template and of users is tokenized as one text."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.sample import Content, Pair, Sample
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat import EMB, MASK, Markup, UserText, pieces_of
from muco.plugins.backbones.decoder.processor import DecoderProcessor
from muco.plugins.backbones.decoder.token_sequence import TokenSequence
from muco.plugins.packers.multi_turn import MultiTurn
from tests.helpers.qwen_tokenizer import qwen_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", EMB, MASK]
KEY = TurnKey(sample_id=0, turn_id=0, group_id=0, content_id=0, task_id=0)


class TextProcessor(DecoderProcessor):
    num_axes = 1

    def pieces(self, dialogue):
        return pieces_of(dialogue, "chatml")

    def put_image(self, sequence, images, index):
        raise AssertionError("the dialogues have no image")

    def pixels(self, sequences):
        raise AssertionError("the dialogues have no image")


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    texts = ["what is it?\n", "a dog.\n", "user\n", 'he said "no"\n', "(one)\n"] * 9
    tokenizer = qwen_tokenizer(texts, SPECIAL)
    return TextProcessor(tokenizer, None, RowSettings())


def tokens_and_text(processor: TextProcessor, *messages: Message) -> tuple[TokenSequence, str]:
    """Return the sequence of a dialogue of one turn, and the text that its template renders."""
    dialogue = Dialogue("Be brief.", (), (Turn(messages, KEY),))
    pieces = processor.pieces(dialogue)
    text = "".join(
        piece.text
        for piece in (*pieces.prefix, *(each for turn in pieces.turns for each in turn))
        if isinstance(piece, Markup | UserText)
    )
    return processor.render(dialogue), text


def test_a_question_mark_and_the_line_break_of_the_template_are_one_token(processor):
    sequence, text = tokens_and_text(processor, Message("user", Content("what is it?")))
    tokens = processor.tokenizer.convert_ids_to_tokens(sequence.input_ids)
    assert "what is it?\n<|im_end|>" in text
    assert "?Ċ" in tokens  # ByteLevel writes the line break as Ċ
    assert sequence.input_ids == processor.tokenizer(text)["input_ids"]


@given(text=st.text(st.sampled_from("ab ?.\")\n1'é"), max_size=12).filter(lambda text: text.strip()))
def test_tokens_are_those_of_the_whole_rendered_text(processor, text):
    messages = [Message(role, Content(text)) for role in ("user", "assistant", "user")]
    sequence, whole = tokens_and_text(processor, *messages)
    assert sequence.input_ids == processor.tokenizer(whole)["input_ids"]
    assert [sequence.input_ids[index] for index in sequence.token] == [processor.emb_id]


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_token_in_the_text_of_a_user_is_plain_text(processor, special):
    sequence, _ = tokens_and_text(processor, Message("user", Content(f"what {special} is it?")))
    plain, _ = tokens_and_text(processor, Message("user", Content("what is it?")))
    special_id = processor.tokenizer.convert_tokens_to_ids(special)
    assert sequence.input_ids.count(special_id) == plain.input_ids.count(special_id)
    assert special in processor.tokenizer.decode(sequence.input_ids)


BASE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.mark.parametrize(
    ("line_breaks", "ends"),
    [("data", ("", "\n")), ("template", ("\n", "\n"))],
)
def test_a_text_of_stage_1_ends_as_the_setting_says(processor, line_breaks, ends):
    pairs = tuple(
        Pair("t", (Content(f"what is {each}?{end}"),), Content(f"{each}.{end}"))
        for each, end in (("it", ""), ("this", "\n"))
    )
    packer = MultiTurn(MultiTurn.Config(order="fixed", line_breaks=line_breaks))
    packed = packer.pack(Sample("1", "d", (), pairs), batch_random=Random(0), sample_random=Random(0))
    answer = f"<|im_start|>assistant\n{EMB}<|im_end|>"
    for dialogue, texts in (
        (packed.queries[0], ("what is it?", "what is this?")),
        (packed.targets[0], ("it.", "this.")),
    ):
        users = [f"<|im_start|>user\n{text}{end}<|im_end|>\n" for text, end in zip(texts, ends, strict=True)]
        whole = BASE + "\n".join(user + answer for user in users)
        assert processor.render(dialogue).input_ids == processor.tokenizer(whole)["input_ids"]

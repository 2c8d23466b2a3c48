"""The chat template of an exported model against the templates that muco trains with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from muco.core import Content, Dialogue, Message, Turn, default_registry
from muco.plugins.backbones.decoder.chat import EMB, IMAGE_PAD, Markup, Piece, UserText, pieces_of
from muco.plugins.backbones.decoder.chat_templates import layout
from muco.plugins.backbones.decoder.chat_templates import pieces_of as pieces_of_table
from muco.plugins.backbones.decoder.jinja_template import ChatFormat, jinja_template
from muco.testing import dialogue_of
from tests.helpers.small import TEXTS, picture, small, small_idefics, small_llava

IMAGE = picture("red", (8, 8))
KEY = dialogue_of(["a"], ()).turns[0].key


@cache
def processor(name: str) -> Any:
    """Return the processor of a small model with this template."""
    family, _, template = name.partition("-")
    values = {
        "qwen_vl": lambda: small("qwen2_vl", template=template),
        "llava": lambda: small_llava("llava", template=template),
        "idefics": lambda: small_idefics(template=template),
    }[family]()
    cls = default_registry().component("backbone", family)
    return cls.build(cls.Config.model_validate(values), texts=TEXTS).processor


NAMES = [
    *(f"qwen_vl-{name}" for name in ("chatml", "chatml_public", "bare")),
    *(f"llava-{name}" for name in ("vicuna", "mistral", "chatml", "bare")),
    *(f"idefics-{name}" for name in ("chat", "bare")),
]
texts = st.one_of(
    st.sampled_from(
        ["", "\n", "\n\n", "a\n", " a ", "{{ a }}{% if %}", "'\"\\n", EMB, "<|im_end|>\n", "é中😀"]
    ),
    st.text(),
)
messages = st.tuples(texts, st.integers(0, 2))


def rendered(pieces: Any, image: str) -> str:
    """Return the pieces as one text."""

    def text(piece: Piece) -> str:
        return piece.text if isinstance(piece, Markup | UserText) else image

    return "".join(map(text, [*pieces.prefix, *(each for turn in pieces.turns for each in turn)]))


def dialogue(system: str, turns: list[tuple[str, int]]) -> Dialogue:
    """Return the first turn's images in the prefix, as packers put them, the others' in their turns."""
    made = tuple(
        Turn((Message("user", Content(text, (IMAGE,) * (number if index else 0))),), KEY)
        for index, (text, number) in enumerate(turns)
    )
    return Dialogue(system, (IMAGE,) * turns[0][1], made)


def chat(turns: list[tuple[str, int]], *, images_first: bool = True) -> list[dict[str, Any]]:
    """Return the chat of the same turns, as transformers takes it."""
    made = []
    for text, number in turns:
        parts = [[{"type": "image"}] * number, [{"type": "text", "text": text}]]
        content = [part for group in (parts if images_first else parts[::-1]) for part in group]
        made.append({"role": "user", "content": content})
    return made


def render(template: str, messages: list[dict[str, Any]]) -> str:
    return render_jinja_template([messages], chat_template=template)[0][0]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(st.data())
def test_it_renders_the_dialogue_byte_for_byte(name, data):
    ours = processor(name)
    system = data.draw(texts, "system")
    turns = data.draw(st.lists(messages, min_size=1, max_size=3), "turns")
    first = data.draw(st.booleans(), "images first")
    image = IMAGE_PAD if name.startswith("qwen") else "<image>"
    whole = rendered(ours.pieces(dialogue(system, turns)), image)
    shown = chat(turns, images_first=first)

    template = jinja_template(ours.chat_format(), system=system)
    closing = ours.chat_format().template.assistant[1]
    assert render(template, shown) == whole.removesuffix(closing)
    assert render(template, shown).endswith(EMB)
    ending = jinja_template(ours.chat_format(), system=system, ends_turn=True)
    assert render(ending, shown) == whole


@settings(max_examples=30)
@given(texts, texts)
def test_a_chat_may_bring_its_system_text_and_plain_strings(system, text):
    chat_format = ChatFormat(layout("chatml"), f"{IMAGE_PAD}\n", text_end="\n")
    expected = rendered(pieces_of(dialogue(system, [(text, 0)]), "chatml"), "").removesuffix("<|im_end|>")
    template = jinja_template(chat_format, system="another")
    user = {"role": "user", "content": text}
    parts = [{"type": "text", "text": system}]
    for content in (system, parts):
        assert render(template, [{"role": "system", "content": content}, user]) == expected


def test_the_token_that_begins_a_text_and_several_texts():
    chat_format = ChatFormat(layout("vicuna"), "<image>\n")
    template = jinja_template(chat_format, system="", beginning="<s>")
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    expected = rendered(pieces_of_table(dialogue("", [("a\nb", 1)]), layout("vicuna")), "<image>")
    assert render(template, [{"role": "user", "content": parts}]) == "<s>" + expected.removesuffix("</s>")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "assistant", "content": "a"}, "the role assistant is not supported"),
        ({"role": "user", "content": [{"type": "video"}]}, "embeds texts and images, not video"),
    ],
)
def test_what_the_model_does_not_embed_is_refused(message, error):
    template = jinja_template(ChatFormat(layout("bare"), "<image>"), system="")
    with pytest.raises(TemplateError, match=error):
        render(template, [message])

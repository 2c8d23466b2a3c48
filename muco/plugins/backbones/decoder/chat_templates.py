"""Chat templates as tables, and those of LLaVA's language models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from muco.core.dialogue import Dialogue, Message, Turn
from muco.core.errors import MucoError
from muco.plugins.backbones.decoder.chat import EMB, MASK, Markup, Piece, Pieces, UserText

TemplateName = Literal["auto", "vicuna", "mistral", "chatml", "bare"]


@dataclass(frozen=True)
class Template:
    """The text before and after each part of a dialogue."""

    system: tuple[str, str] = ("", "")
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    gap: str = ""
    """Between a message's opening and its content."""
    between: str = ""
    """Between a message's end and the next one's opening."""
    after_image: str = ""
    gap_before_image: bool = True
    """Whether `gap` also stands between a message's opening and its first image."""
    needs: tuple[str, ...] = ()
    """Special tokens that the tokenizer must have."""


_TEMPLATES = {
    "vicuna": Template(
        system=("", " "),
        user=("USER:", " "),
        assistant=("ASSISTANT:", "</s>"),
        gap=" ",
        after_image="\n",
        needs=("</s>",),
    ),
    "mistral": Template(
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        user=("[INST]", " [/INST]"),
        assistant=("", "</s>"),
        gap=" ",
        after_image="\n",
        needs=("</s>",),
    ),
    "chatml": Template(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>"),
        between="\n",
        after_image="\n",
        needs=("<|im_start|>", "<|im_end|>"),
    ),
    "bare": Template(),
}
_OF_DECODER = {"llama": "vicuna", "mistral": "mistral", "qwen2": "chatml"}


def layout(name: Literal["vicuna", "mistral", "chatml", "bare"]) -> Template:
    """Return the template of that name."""
    return _TEMPLATES[name]


def find_template(name: TemplateName, tokenizer: Any, *, decoder: str) -> Template:
    """Return the template of that name, or with `auto` that of the language model.

    Args:
        name: the setting.
        tokenizer: must have the template's special tokens.
        decoder: the language model's `model_type` in transformers.

    Raises:
        MucoError: `auto` and no template for this language model, or a special token is missing.
    """
    chosen = _OF_DECODER.get(decoder, "") if name == "auto" else name
    missing = (
        sorted(set(_TEMPLATES[chosen].needs) - set(tokenizer.get_vocab()))
        if chosen
        else [f"template of a {decoder}"]
    )
    if missing:
        raise MucoError(
            f"backbone.template: {name} finds no {', '.join(missing)}; name one of {', '.join(_TEMPLATES)}"
        )
    return _TEMPLATES[chosen]


def pieces_of(dialogue: Dialogue, template: Template) -> Pieces:
    """Return the dialogue's pieces; each isolated turn directly follows the prefix."""
    prefix: list[Piece] = []
    if dialogue.system:
        before, after = template.system
        prefix += [Markup(before), UserText(dialogue.system), Markup(after)]
    prefix.append(Markup(template.user[0]))
    if dialogue.images and template.gap_before_image:
        prefix.append(Markup(template.gap))
    for image in dialogue.images:
        prefix += [image, Markup(template.after_image)]
    turns = []
    for index, turn in enumerate(dialogue.turns):
        follows = index > 0 and dialogue.context == "causal"
        opening = (Markup(template.between + template.user[0]),) if follows else ()
        gap = "" if dialogue.images and not follows else template.gap
        turns.append(_joined((*opening, *_turn(turn, template, gap))))
    return Pieces(_joined(prefix), tuple(turns))


def _turn(turn: Turn, template: Template, gap: str) -> Iterator[Piece]:
    """Yield the turn from within its first user message to the end of its embedding's message."""
    for index, message in enumerate(turn.messages):
        opening, closing = template.user if message.role == "user" else template.assistant
        if index:
            yield Markup(opening)
        yield from _content(message, template, template.gap if index else gap)
        yield Markup(closing + template.between)
    opening, closing = template.assistant
    yield Markup(f"{opening}{EMB}{closing}")


def _content(message: Message, template: Template, gap: str) -> Iterator[Piece]:
    """Yield the images, then the text with its blanks. `gap` is put before the first of them."""
    for image in message.content.images:
        yield from (Markup(gap if template.gap_before_image else ""), image, Markup(template.after_image))
        gap = ""
    text, start = message.content.text, 0
    text = text.removesuffix("\n") if message.line_break else text
    for position in message.blanks:
        if text[start:position]:
            yield UserText(gap + text[start:position])
            gap = ""
        yield Markup(gap + MASK)
        start, gap = position, ""
    if text[start:]:
        yield UserText(gap + text[start:])


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return the pieces with adjacent markup joined, because it is tokenized as one text."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Markup) and isinstance(last, Markup):
            joined[-1] = Markup(last.text + piece.text)
        elif not (isinstance(piece, Markup) and not piece.text):
            joined.append(piece)
    return tuple(joined)

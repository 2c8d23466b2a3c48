"""The chat templates of LLaVA's language models, as tables."""

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
    """What stands around what is said."""

    system: tuple[str, str] = ("", "")
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    gap: str = ""
    """Between a message's opening and what it says."""
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


def find_template(name: TemplateName, tokenizer: Any, *, decoder: str) -> Template:
    """Return the template of that name, or with `auto` that of the language model.

    Args:
        name: as the recipe has it.
        tokenizer: must know the template's special tokens.
        decoder: the language model's type in transformers.

    Raises:
        MucoError: `auto` for a language model without a template here, or a token that is not there.
    """
    found = _OF_DECODER.get(decoder, "") if name == "auto" else name
    lacking = (
        sorted(set(_TEMPLATES[found].needs) - set(tokenizer.get_vocab()))
        if found
        else [f"template of a {decoder}"]
    )
    if lacking:
        raise MucoError(
            f"backbone.template: {name} finds no {', '.join(lacking)}; name one of {', '.join(_TEMPLATES)}"
        )
    return _TEMPLATES[found]


def pieces_of(dialogue: Dialogue, template: Template) -> Pieces:
    """Return the dialogue's pieces; with isolated turns each follows the prefix directly."""
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
    for place, turn in enumerate(dialogue.turns):
        follows = place > 0 and dialogue.context == "causal"
        opening = (Markup(template.between + template.user[0]),) if follows else ()
        gap = "" if dialogue.images and not follows else template.gap
        turns.append(_joined((*opening, *_turn(turn, template, gap))))
    return Pieces(_joined(prefix), tuple(turns))


def _turn(turn: Turn, template: Template, gap: str) -> Iterator[Piece]:
    """Yield the turn from within its first user message to the end of its embedding's message."""
    for place, message in enumerate(turn.messages):
        opening, closing = template.user if message.role == "user" else template.assistant
        if place:
            yield Markup(opening)
        yield from _content(message, template, template.gap if place else gap)
        yield Markup(closing + template.between)
    opening, closing = template.assistant
    yield Markup(f"{opening}{EMB}{closing}")


def _content(message: Message, template: Template, gap: str) -> Iterator[Piece]:
    """Yield the images, then the text with its blanks; the gap joins what it precedes, as a space does."""
    for image in message.content.images:
        yield from (Markup(gap if template.gap_before_image else ""), image, Markup(template.after_image))
        gap = ""
    text, start = message.content.text, 0
    for place in message.blanks:
        if text[start:place]:
            yield UserText(gap + text[start:place])
            gap = ""
        yield Markup(gap + MASK)
        start, gap = place, ""
    if text[start:]:
        yield UserText(gap + text[start:])


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return the pieces with neighbouring markup in one: it is tokenized as one text."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Markup) and isinstance(last, Markup):
            found[-1] = Markup(last.text + piece.text)
        elif not (isinstance(piece, Markup) and not piece.text):
            found.append(piece)
    return tuple(found)

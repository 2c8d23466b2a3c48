"""Which pairs are dropped, and why. Each filter returns its name in the counts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from muco.generate.language import is_other_language
from muco.generate.settings import Generation
from muco.generate.text import words

_MARKUP = re.compile(r"```|^#{1,6} |\*\*|</?[a-z][^>]{0,200}>|\[[^\]]*\]\([^)]*\)|\\boxed", re.I | re.M)
_REFUSAL = re.compile(
    r"\bas an ai\b|\bas a (large )?language model\b|\bi('m| am) (sorry|unable|not able)\b"
    r"|\bi (cannot|can't|can not) (assist|help|see|view|provide|answer|determine|identify)\b"
    r"|\b(no|without an?) image (was |is )?(provided|attached|available)\b",
    re.I,
)
_ARTICLES = {"a", "an", "the"}
_FEW_WORDS = 3
"""A question of fewer words may stand in an answer."""


@dataclass(frozen=True)
class CleanPair:
    """A pair after cleaning."""

    turn: str
    kind: str
    queries: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Dropped:
    """A pair that a filter dropped."""

    filter: str
    pair: CleanPair
    detail: str = ""


def is_refusal(text: str) -> bool:
    """Return whether a text speaks of the assistant, or says that it does not answer."""
    return bool(_REFUSAL.search(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def filtered(pairs: Sequence[CleanPair], settings: Generation) -> tuple[list[CleanPair], list[Dropped]]:
    """Return the pairs of one image that pass all filters, and the others."""
    passed: list[CleanPair] = []
    dropped: list[Dropped] = []
    asked: list[frozenset[str]] = []
    for pair in pairs:
        own = [frozenset(words(query)) for query in pair.queries]
        reason = _reason(pair, settings)
        if not reason and is_near(own, asked, settings.filters.max_overlap):
            reason = "duplicate"
        if reason:
            dropped.append(Dropped(reason, pair))
        else:
            passed.append(pair)
            asked += own
    return passed, dropped


def _reason(pair: CleanPair, settings: Generation) -> str:
    """Return the name of the first filter that drops a pair for its own texts; empty if it passes."""
    filters, texts = settings.filters, (*pair.queries, pair.answer)
    if not (pair.queries and pair.answer):
        return "empty"
    if filters.refusals and any(map(is_refusal, texts)):
        return "refusal"
    if filters.markup and any(map(_MARKUP.search, texts)):
        return "markup"
    if len(pair.answer.split()) > settings.kinds[pair.kind].max_words:
        return "too_long"
    if filters.script and any(has_other_script(text, filters.script) for text in texts):
        return "script"
    if filters.language and any(
        is_other_language(text, filters.language) for text in (" ".join(pair.queries), pair.answer)
    ):
        return "language"
    if filters.repeats and any(repeats(query, pair.answer) for query in pair.queries):
        return "repeats_question"
    return ""


def repeats(query: str, answer: str) -> bool:
    """Return whether an answer is its question, or holds the whole of it."""
    asked, said = words(query), words(answer)
    starts = range(len(said) - len(asked) + 1) if len(asked) >= _FEW_WORDS else range(0)
    return asked == said or any(said[start : start + len(asked)] == asked for start in starts)


def agree(first: str, second: str, min_agreement: float) -> bool:
    """Return whether two answers agree: enough words of the shorter one are in the other.

    Case, punctuation, the form of characters (NFKC) and English articles do not count.
    """
    one, other = sorted((_content_words(first), _content_words(second)), key=len)
    return len(one & other) >= min_agreement * len(one) if one else one == other


def _content_words(text: str) -> set[str]:
    return set(words(unicodedata.normalize("NFKC", text))) - _ARTICLES


def is_near(own: Sequence[frozenset[str]], others: Sequence[frozenset[str]], max_overlap: float) -> bool:
    """Return whether two questions, given by their words, share too large a part of them."""
    for one in own:
        for other in others:
            shared = len(one & other)
            if shared and shared >= max_overlap * (len(one) + len(other) - shared):
                return True
    return False


def has_other_script(text: str, script: str) -> bool:
    """Return whether a letter of the text is of another script, by the first word of its Unicode name."""
    return any(
        not unicodedata.name(letter, script).startswith(script.upper()) for letter in text if letter.isalpha()
    )

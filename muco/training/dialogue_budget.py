"""A token budget for each dialogue: whole turns are left out, on both sides, and none is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from muco.core.dialogue import Dialogue, DialoguePair, Turn

Unit = tuple[int, int, int]
"""Sample, turn and form of a turn: what is left out together."""


@dataclass(frozen=True)
class Fitted:
    """A sample's dialogues within a budget."""

    pair: DialoguePair | None
    """None where no turn is left."""
    num_dropped: int
    """Query turns, with their targets, and hard negatives that were left out."""


def drop_overlong_turns(pair: DialoguePair, *, max_tokens: int, count: Callable[[Dialogue], int]) -> Fitted:
    """Leave out the turns by which a dialogue grows beyond `max_tokens`.

    Those that do not fit even alone go first; then a dialogue keeps each turn, in order, that fits beside
    those kept before it. So a pair that fits alone is never lost to one that does not. A turn that is left
    out of one side is left out of the other, with its hard negatives; with a turn's original form goes the
    reconstructed one, which follows it. A hard negative that is too long goes alone.

    Args:
        pair: what a packer made of a sample.
        max_tokens: language-model tokens, an image's among them.
        count: of the tokens of a dialogue.
    """
    long = [dialogue for dialogue in pair.queries + pair.targets if count(dialogue) > max_tokens]
    out = {
        _unit(turn)
        for dialogue in long
        for turn in dialogue.turns
        if count(replace(dialogue, turns=(turn,))) > max_tokens
    }
    for dialogue in long:
        _leave_out(dialogue, out, max_tokens, count)
    sound = [each for each in pair.negatives if count(each) <= max_tokens]
    asked = [turn for dialogue in pair.queries for turn in dialogue.turns]
    gone = [turn for turn in asked if _is_out(turn, out)]
    too_long = len(pair.negatives) - len(sound)
    if not gone and not too_long:
        return Fitted(pair, 0)
    if len(gone) == len(asked):
        return Fitted(None, len(asked) + too_long)
    kept = DialoguePair(_without(pair.queries, out), _without(pair.targets, out), _without(sound, out))
    return Fitted(kept, len(gone) + too_long)


def _leave_out(dialogue: Dialogue, out: set[Unit], max_tokens: int, count: Callable[[Dialogue], int]) -> None:
    """Add to `out` the turns that do not fit."""
    kept: tuple[Turn, ...] = ()
    for turn in dialogue.turns:
        if _is_out(turn, out):
            continue
        grown = (*kept, turn)
        if count(replace(dialogue, turns=grown)) <= max_tokens:
            kept = grown
        else:
            out.add(_unit(turn))


def _unit(turn: Turn) -> Unit:
    return turn.key.sample_id, turn.key.turn_id, turn.key.form_id


def _is_out(turn: Turn, out: set[Unit]) -> bool:
    sample, number, form = _unit(turn)
    return (sample, number, 0) in out or (sample, number, form) in out


def _without(dialogues: tuple[Dialogue, ...] | list[Dialogue], out: set[Unit]) -> tuple[Dialogue, ...]:
    """Return the dialogues without those turns; one that is left without a turn goes whole."""
    found = ((each, tuple(turn for turn in each.turns if not _is_out(turn, out))) for each in dialogues)
    return tuple(replace(each, turns=turns) for each, turns in found if turns)

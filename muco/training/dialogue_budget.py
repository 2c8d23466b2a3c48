"""A token budget for each dialogue: whole turns are dropped on both sides; no text is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from muco.core.dialogue import Dialogue, DialoguePair, Turn

Unit = tuple[int, int, int]
"""Sample, turn and form: query and target turns with equal units are dropped together."""


@dataclass(frozen=True)
class Fitted:
    """A sample's dialogues within the budget."""

    pair: DialoguePair | None
    """None if no turn is left."""
    num_dropped: int
    """Dropped query turns, with their targets, and dropped hard negatives."""


def drop_overlong_turns(pair: DialoguePair, *, max_tokens: int, count: Callable[[Dialogue], int]) -> Fitted:
    """Drop the turns that do not fit into dialogues of `max_tokens`, as `count` counts them.

    First, turns that are too long in a dialogue of their own are dropped. Then each dialogue keeps, in order,
    every turn that fits beside those before it. So no pair that fits is dropped because of one that does not.
    A turn dropped from one side is dropped from the other too, with its hard negatives; a reconstructed form
    is dropped with its original form. A hard negative that is too long is the only one dropped.
    """
    long = [dialogue for dialogue in pair.queries + pair.targets if count(dialogue) > max_tokens]
    dropped = {
        _unit(turn)
        for dialogue in long
        for turn in dialogue.turns
        if count(replace(dialogue, turns=(turn,))) > max_tokens
    }
    for dialogue in long:
        _drop_beyond(dialogue, dropped, max_tokens, count)
    negatives = [each for each in pair.negatives if count(each) <= max_tokens]
    queries = [turn for dialogue in pair.queries for turn in dialogue.turns]
    dropped_queries = [turn for turn in queries if _is_dropped(turn, dropped)]
    too_long = len(pair.negatives) - len(negatives)
    if not dropped_queries and not too_long:
        return Fitted(pair, 0)
    if len(dropped_queries) == len(queries):
        return Fitted(None, len(queries) + too_long)
    short = DialoguePair(
        _without(pair.queries, dropped), _without(pair.targets, dropped), _without(negatives, dropped)
    )
    return Fitted(short, len(dropped_queries) + too_long)


def _drop_beyond(
    dialogue: Dialogue, dropped: set[Unit], max_tokens: int, count: Callable[[Dialogue], int]
) -> None:
    """Add the turns that do not fit to `dropped`."""
    fitting: tuple[Turn, ...] = ()
    for turn in dialogue.turns:
        if _is_dropped(turn, dropped):
            continue
        grown = (*fitting, turn)
        if count(replace(dialogue, turns=grown)) <= max_tokens:
            fitting = grown
        else:
            dropped.add(_unit(turn))


def _unit(turn: Turn) -> Unit:
    return turn.key.sample_id, turn.key.turn_id, turn.key.form_id


def _is_dropped(turn: Turn, dropped: set[Unit]) -> bool:
    sample, number, form = _unit(turn)
    return (sample, number, 0) in dropped or (sample, number, form) in dropped


def _without(dialogues: tuple[Dialogue, ...] | list[Dialogue], dropped: set[Unit]) -> tuple[Dialogue, ...]:
    """Return the dialogues without the dropped turns; dialogues without turns are dropped too."""
    left = (
        (each, tuple(turn for turn in each.turns if not _is_dropped(turn, dropped))) for each in dialogues
    )
    return tuple(replace(each, turns=turns) for each, turns in left if turns)

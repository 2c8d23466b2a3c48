"""What a batch is assumed to be, where no data is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from pydantic import NonNegativeInt, PositiveInt, ValidationError

from muco.config.yaml_lines import read_yaml
from muco.core.component import ComponentConfig
from muco.core.dialogue import Dialogue
from muco.core.errors import MucoError, RecipeError, did_you_mean
from muco.core.image import EncodedImage
from muco.core.layers import DialogueShape
from muco.core.packer import Packer
from muco.core.pooler import Pooler
from muco.core.sample import Content, Pair, Sample
from muco.core.turns import TurnSpans


class Assumptions(ComponentConfig):
    """The samples of a step. Each has one image and equal turns."""

    images: PositiveInt
    """Samples of a step, over all processes; by default `train.global_batch_size`."""
    turns: PositiveInt = 7
    """Pairs of a query and a target for each image."""
    image_width: PositiveInt = 640
    """Pixels."""
    image_height: PositiveInt = 640
    """Pixels."""
    query_words: NonNegativeInt = 20
    """Of a query. A word is assumed to be one token, in prompts too."""
    target_words: PositiveInt = 20
    """Of a target."""
    turn_tokens: NonNegativeInt = 10
    """What the chat template adds to a turn, the embedding token included."""
    flash_attention: bool = False
    """Whether the backward pass of attention computes the scores again; only for the hardware FLOPs."""


def read_assumptions(texts: Sequence[str], images: int) -> Assumptions:
    """Return assumptions from `KEY=VALUE`; raise MucoError for one that is not allowed."""
    values: dict[str, object] = {"images": images}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in Assumptions.model_fields:
            keys = list(Assumptions.model_fields)
            near = did_you_mean(key, keys)
            raise MucoError(f"--assume {text}: write KEY=VALUE.{near} Keys: {', '.join(keys)}")
        try:
            values[key] = read_yaml("", value)[0]
        except RecipeError:
            raise MucoError(f"--assume {text}: the value is not YAML; write a number") from None
    try:
        return Assumptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise MucoError(f"--assume {first['loc'][0]}: {first['msg']}") from None


@dataclass(frozen=True)
class AssumedSide:
    """The query dialogues or the target dialogues of one sample."""

    dialogues: tuple[DialogueShape, ...]
    num_turns: int


def assumed_sides(
    packer: Packer, assumed: Assumptions, pooler: Pooler | None = None
) -> tuple[AssumedSide, AssumedSide]:
    """Return queries and targets of one sample, as the packer arranges them and the pooler reads them."""
    query, target = (" ".join(["word"] * each) for each in (assumed.query_words, assumed.target_words))
    pairs = tuple(Pair(f"turn_{index}", (Content(query),), Content(target)) for index in range(assumed.turns))
    image = EncodedImage(b"never read: its size is assumed")
    sample = Sample("assumed", "assumed", (image,), pairs, caption=target)
    packed = packer.pack(sample, batch_random=Random(0), sample_random=Random(0))
    targets = packed.targets + packed.negatives
    return _side(packed.queries, assumed, pooler), _side(targets, assumed, pooler)


def _side(dialogues: Sequence[Dialogue], assumed: Assumptions, pooler: Pooler | None) -> AssumedSide:
    shapes = tuple(_shape(each, assumed, pooler) for each in dialogues)
    return AssumedSide(shapes, sum(len(each.turn_tokens) for each in shapes))


def _shape(dialogue: Dialogue, assumed: Assumptions, pooler: Pooler | None) -> DialogueShape:
    contents = [[message.content for message in turn.messages] for turn in dialogue.turns]
    images = [*dialogue.images, *(image for turn in contents for content in turn for image in content.images)]
    turn_tokens = tuple(
        sum(len(content.text.split()) for content in turn) + assumed.turn_tokens for turn in contents
    )
    return DialogueShape(
        prefix_tokens=len(dialogue.system.split()),
        images=((assumed.image_width, assumed.image_height),) * len(images),
        turn_tokens=turn_tokens,
        isolated=dialogue.context == "isolated",
        num_read=_num_read(pooler, turn_tokens),
    )


def _num_read(pooler: Pooler | None, turn_tokens: Sequence[int]) -> int | None:
    if pooler is None:
        return None
    stop = torch.tensor(turn_tokens, dtype=torch.int64).cumsum(0)
    read = pooler.reads(TurnSpans(token=stop - 1, start=stop - torch.tensor(turn_tokens), stop=stop))
    return None if read is None else len(read)

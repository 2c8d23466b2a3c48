"""The layers of a backbone as plain data, from which the FLOPs of a step are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from muco.core.turns import EncoderInputs


@dataclass(frozen=True)
class Linear:
    """A product of rows and a weight matrix: 2 x inputs x outputs FLOPs a row."""

    name: str
    inputs: int
    outputs: int
    trained: bool = True
    reads_input: bool = False
    """Whether it reads the input of its block, as the projections to queries, keys and values do."""
    rank: int = 0
    """Of its LoRA adapter; 0 for none."""
    base_calls: int = 1
    """How often the weight is multiplied: twice with DoRA and dropout, which puts other rows through it."""
    rows: str | None = None
    """The lengths whose sum is the number of its rows; None, or lengths that a chunk lacks: its block's."""
    dora: bool = False
    """Whether each call also multiplies the adapter's two matrices, for the length of the weight's rows."""


@dataclass(frozen=True)
class Block:
    """Equal layers, one after another; gradient checkpointing computes each of them again."""

    linears: tuple[Linear, ...]
    """In the order in which they are computed."""
    rows: str
    """The lengths whose sum is the number of rows: a key of `Lengths.of`."""
    repeats: int = 1
    attention_dim: int = 0
    """Query heads times their size; 0 without attention."""
    attends_within: str | None = None
    """The lengths of the sequences that attend to themselves; None: those of `rows`."""
    checkpointed: bool = False
    used: bool = True
    """Whether anything reads its output. If not, it has no backward pass."""


@dataclass(frozen=True)
class Part:
    """A part of a model: the vision tower, the projector, the language model."""

    name: str
    blocks: tuple[Block, ...]
    input_gradient: bool
    """Whether its input needs a gradient, for what is trained before it: the embeddings of tokens."""
    computes_images: bool = False
    """Whether `Backbone.encode_images` computes it."""

    @property
    def trained(self) -> bool:
        """Whether a weight of it or an adapter on it is trained."""
        return any(each.trained or each.rank for block in self.blocks for each in block.linears)


@dataclass(frozen=True)
class Lengths:
    """The sizes of one or more chunks."""

    of: Mapping[str, Sequence[int]]
    """Lengths of sequences by name; the backbone chooses the names."""
    visible_pairs: Mapping[str, int] = field(default_factory=dict[str, int])
    """Pairs of a query and a key that the mask allows, by the same names; without a name: all pairs."""


@dataclass(frozen=True)
class DialogueShape:
    """The size of a dialogue before it is tokenized."""

    prefix_tokens: int
    images: tuple[tuple[int, int], ...]
    """Width and height in pixels."""
    turn_tokens: tuple[int, ...]
    isolated: bool
    num_read: int | None = None
    """The tokens whose hidden states the pooler reads; None: all."""


class ModelLayers(ABC):
    """The layers of a backbone, and the lengths of the sequences that pass them."""

    parts: tuple[Part, ...]
    hidden_dim: int
    """Of the hidden states that the backbone returns."""

    @abstractmethod
    def lengths_of(self, chunk: EncoderInputs) -> Lengths:
        """Return the lengths of a chunk, which is on the CPU."""

    @abstractmethod
    def lengths_for(self, dialogues: Sequence[DialogueShape]) -> Lengths:
        """Return the lengths of dialogues of these shapes, without padding."""


def repeat_lengths(lengths: Lengths, times: int) -> Lengths:
    """Return the lengths of so many equal chunks."""
    return Lengths(
        {name: [*each] * times for name, each in lengths.of.items()},
        {name: pairs * times for name, pairs in lengths.visible_pairs.items()},
    )


def join_lengths(parts: Sequence[Lengths]) -> Lengths:
    """Return the lengths of several chunks as those of one."""
    names = dict.fromkeys(name for part in parts for name in part.of)
    return Lengths(
        {name: [length for part in parts for length in part.of.get(name, ())] for name in names},
        {
            name: sum(
                part.visible_pairs.get(name, sum(length**2 for length in part.of.get(name, ())))
                for part in parts
            )
            for name in names
            if any(name in part.visible_pairs for part in parts)
        },
    )

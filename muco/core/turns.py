"""Turns as tensors: what passes from a backbone to a pooler and a loss.

N turns, D embedding size, H hidden size, T tokens of a chunk, its rows concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from muco.core.dialogue import TurnKey


@dataclass(frozen=True, kw_only=True)
class TurnIds:
    """The identities of N turns; int64 [N], `is_negative` bool [N]. See `TurnKey`."""

    sample_ids: Tensor
    turn_ids: Tensor
    form_ids: Tensor
    group_ids: Tensor
    content_ids: Tensor
    task_ids: Tensor
    is_negative: Tensor

    @classmethod
    def of(cls, keys: Sequence[TurnKey]) -> TurnIds:
        """Return the keys as columns: `sample_id` of each key becomes `sample_ids`, and so on."""
        columns = {
            name: torch.tensor([getattr(key, name.removesuffix("s")) for key in keys], dtype=torch.int64)
            for name in (field.name for field in fields(TurnIds))
        }
        return TurnIds(**{**columns, "is_negative": columns["is_negative"].bool()})

    def ids(self) -> TurnIds:
        """Return only the identities."""
        return TurnIds(**{field.name: getattr(self, field.name) for field in fields(TurnIds)})

    def __len__(self) -> int:
        return len(self.sample_ids)

    def select(self, index: Tensor) -> Self:
        """Return the rows at `index`, int64 or bool, with gradient."""
        return self._each(lambda column: column[index])

    def to(self, device: torch.device | str) -> Self:
        """Return the rows on `device`."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class TurnEmbeddings(TurnIds):
    """The embeddings and identities of N turns."""

    vectors: Tensor
    """[N, D], any float dtype, unit length."""

    @classmethod
    def join(cls, vectors: Tensor, ids: TurnIds) -> TurnEmbeddings:
        """Return `vectors` [N, D] with the identities of the same N turns."""
        columns = {field.name: getattr(ids, field.name) for field in fields(TurnIds)}
        return cls(vectors=vectors, **columns)


@dataclass(frozen=True, kw_only=True)
class TurnSpans:
    """The positions of N turns in a chunk's tokens; int64 [N], indices into the concatenated rows.

    The span of a turn is [start, stop): its own tokens, without the shared prefix.
    """

    token: Tensor
    """Index of the turn's embedding token."""
    start: Tensor
    stop: Tensor


@dataclass(frozen=True, kw_only=True)
class EncoderInputs:
    """One chunk: dialogues that a backbone encodes together."""

    tensors: dict[str, Tensor]
    """The arguments of this backbone's `encode`, by names of its own."""
    spans: TurnSpans
    ids: TurnIds
    num_tokens: int
    """Language-model tokens, without padding."""
    num_padding_tokens: int
    num_patches: int
    """Image patches that enter the vision tower."""
    read_tokens: Tensor | None = None
    """The tokens whose hidden states the pooler reads; int64 [M], indices into the concatenated rows, on this
    chunk's device. None: all. A backbone may return any finite state for the others."""
    num_cut_texts: int = 0
    """Turns whose text was cut to the backbone's context, if the recipe allows that."""

    @property
    def size(self) -> int:
        """What `chunk_tokens` limits: tokens with padding, or patches if there are more."""
        return max(self.num_tokens + self.num_padding_tokens, self.num_patches)

    def to(self, device: torch.device | str) -> EncoderInputs:
        """Return the chunk on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        spans = TurnSpans(**{f.name: move(getattr(self.spans, f.name)) for f in fields(TurnSpans)})
        tensors = {name: move(tensor) for name, tensor in self.tensors.items()}
        read_tokens = None if self.read_tokens is None else move(self.read_tokens)
        return replace(self, tensors=tensors, spans=spans, ids=self.ids.to(device), read_tokens=read_tokens)


@dataclass(frozen=True, kw_only=True)
class TurnStates:
    """The output of a backbone for one chunk."""

    hidden: Tensor
    """[T, H]: the last hidden state of every token that is read, rows concatenated; see
    `EncoderInputs.read_tokens`."""
    spans: TurnSpans
    ids: TurnIds


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """The output of a vision tower for a chunk's images, in the chunk's order."""

    tensors: tuple[Tensor, ...]
    """Defined by the backbone; usually one tensor [image tokens, H]."""

    def to(self, device: torch.device | str) -> ImageFeatures:
        """Return the features on `device`."""
        return ImageFeatures(tensors=tuple(tensor.to(device) for tensor in self.tensors))

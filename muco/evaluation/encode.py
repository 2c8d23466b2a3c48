"""Contents to vectors: each distinct one once, in chunks of like lengths, kept in a store as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.backbone import Cost, Rendered
from muco.core.dialogue import Dialogue
from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError, MucoError
from muco.core.ids import stable_id
from muco.core.packer import Packer
from muco.core.sample import Content
from muco.core.video import stills
from muco.distributed.ranks import Ranks
from muco.evaluation.embedding_store import EmbeddingStore, StoredVectors
from muco.model.batching import plan_chunks

Track = Callable[[Iterable[NDArray[np.int64]], int], Iterable[NDArray[np.int64]]]
"""Shows that windows go by: (windows, their number) -> the same windows."""

WINDOW = 256
"""Contents that are in memory at once, and that chunks of like lengths are made of. Windows do not depend
on the number of processes nor on what the store holds already, so neither changes a bit of a vector."""
_MOST_TURNS = 32
"""Turns of one image in one pass."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of contents, and what tells these apart."""

    vectors: StoredVectors
    content_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    """Equal where the images are; 0 without any."""


@dataclass
class Passes:
    """What this process has encoded, and what it would have taken one content at a time."""

    num_contents: int = 0
    num_passes: int = 0
    """Dialogues; one holds all contents on its images."""
    tokens: int = 0
    tokens_alone: int = 0
    patches: int = 0
    patches_alone: int = 0
    cut_texts: int = 0
    """Texts that were cut to the backbone's context."""


@dataclass(frozen=True)
class _Unit:
    """A dialogue, the contents that its turns are, what it takes, and what they would take alone."""

    dialogue: Dialogue
    places: tuple[int, ...]
    rendered: Rendered
    alone: Cost


class CachedEmbedder:
    """A trained encoder, the words that it was trained with, and the store of what it has embedded."""

    def __init__(
        self,
        encoder: TurnEncoder,
        packer: Packer,
        store: EmbeddingStore,
        *,
        batch_tokens: int,
        join_turns: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Take the parts of an evaluation.

        Args:
            encoder: the model, on its device.
            packer: makes a dialogue of a content.
            store: open for writing, for vectors of this model alone.
            batch_tokens: language-model tokens and image patches that are encoded at once.
            join_turns: contents with the same images go into one pass, isolated from each other; the
                backbone must offer `isolated_turns`.
            ranks: the processes that share the work; they share the store's folder too.
        """
        self._encoder = encoder.eval()
        self._packer = packer
        self._store = store
        self._budget = Cost(tokens=batch_tokens, patches=batch_tokens)
        self._join_turns = join_turns
        self._ranks = ranks or Ranks()
        self._device = next(encoder.parameters()).device
        self._settled = np.empty(0, dtype=np.int64)
        self._pools: dict[int, tuple[Sequence[Content], Embedded]] = {}
        self._num_windows = 0
        self.passes = Passes()

    @property
    def is_main(self) -> bool:
        """Whether this process scores; all of them encode."""
        return self._ranks.is_main

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def encode(self, contents: Sequence[Content], track: Track = lambda windows, _: windows) -> Embedded:
        """Return the contents' vectors, unit length; equal contents share one.

        Every process calls this with the same contents.

        Raises:
            MucoError: a vector is not finite.
            DataError: an image that cannot be read.
        """
        known = self._pools.get(id(contents))
        if known is not None:
            return replace(known[1], vectors=self._store.vectors(known[1].content_ids))
        content_ids, image_ids = self._identify(contents)
        windows = self._windows(content_ids, image_ids)
        mine = [
            window
            for number, window in enumerate(windows, start=self._num_windows)
            if number % self._ranks.world_size == self._ranks.rank
        ]
        self._num_windows += len(windows)
        for window in track(mine, len(mine)):
            missing = self._store.find(content_ids[window]) < 0
            if missing.any():
                self._settle([contents[place] for place in window.tolist()], content_ids[window], missing)
        self._ranks.wait()
        self._store.refresh()
        self._settled = np.union1d(self._settled, content_ids)
        found = Embedded(self._store.vectors(content_ids), content_ids, image_ids)
        self._pools[id(contents)] = (contents, found)
        return found

    def forget(self, contents: Sequence[Content]) -> None:
        """Let go of contents that will not be asked for again."""
        self._pools.pop(id(contents), None)

    def _identify(self, contents: Sequence[Content]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return content ids and image ids; each process reads its share."""
        number, rank = self._ranks.world_size, self._ranks.rank
        mine = range(len(contents) * rank // number, len(contents) * (rank + 1) // number)
        ids = [(content.content_id, _image_id(content)) for content in map(contents.__getitem__, mine)]
        found = self._ranks.join_rows(torch.tensor(ids, dtype=torch.int64).view(-1, 2)).numpy()
        return found[:, 0].copy(), found[:, 1].copy()

    def _windows(
        self, content_ids: NDArray[np.int64], image_ids: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Return the places of contents not seen before in this run, in runs; those of one image together."""
        _, first = np.unique(content_ids, return_index=True)
        places = np.sort(first)
        places = places[~np.isin(content_ids[places], self._settled)]
        if self._join_turns and len(places):
            keys = np.where(image_ids[places] == 0, content_ids[places], image_ids[places])
            _, opening, which = np.unique(keys, return_index=True, return_inverse=True)
            places = places[np.argsort(opening[which], kind="stable")]
        return [places[start : start + WINDOW] for start in range(0, len(places), WINDOW)]

    @torch.inference_mode()
    def _settle(
        self, contents: list[Content], content_ids: NDArray[np.int64], missing: NDArray[np.bool_]
    ) -> None:
        """Encode a window's contents, whole chunks of them, and store what is missing."""
        processor = self._encoder.backbone.processor
        units = self._units(contents)
        plan = plan_chunks([unit.rendered.cost for unit in units], self._budget, padded=processor.padded)
        for chunk in plan:
            taken = [units[number] for number in chunk]
            places = np.array([place for unit in taken for place in unit.places])
            wanted = missing[places]
            if wanted.any():
                vectors = self._embed(taken, contents)
                self._store.add(content_ids[places[wanted]].tolist(), vectors[torch.from_numpy(wanted)])
                self._note(taken)

    def _embed(self, units: list[_Unit], contents: list[Content]) -> Tensor:
        """Return float32 [turns of the units, D], on the CPU."""
        try:
            inputs = self._encoder.backbone.processor.collate([unit.rendered for unit in units])
        except DataError as error:
            raise _named(error, [contents[place] for unit in units for place in unit.places]) from error
        self.passes.cut_texts += inputs.num_cut_texts
        vectors = self._encoder(inputs.to(self._device)).vectors.float().cpu()
        strange = ~torch.isfinite(vectors).all(1)
        if strange.any():
            places = [place for unit in units for place in unit.places]
            shown = contents[places[int(strange.nonzero()[0])]]
            raise MucoError(
                f"the embedding of {shown.text[:80]!r} with {len(shown.images)} images is not finite; "
                "the weights are broken. Evaluate an earlier checkpoint, or train anew."
            )
        return vectors

    def _note(self, units: list[_Unit]) -> None:
        """Count what was encoded."""
        for unit in units:
            self.passes.num_contents += len(unit.places)
            self.passes.num_passes += 1
            self.passes.tokens += unit.rendered.cost.tokens
            self.passes.tokens_alone += unit.alone.tokens
            self.passes.patches += unit.rendered.cost.patches
            self.passes.patches_alone += unit.alone.patches

    def _units(self, contents: list[Content]) -> list[_Unit]:
        alone = [self._alone(content, place) for place, content in enumerate(contents)]
        if not self._join_turns:
            return alone
        groups: dict[object, list[_Unit]] = {}
        for place, unit in enumerate(alone):
            images = tuple(image.content_id for image in unit.dialogue.images)
            can_join = images and len(unit.dialogue.turns) == 1
            groups.setdefault((unit.dialogue.system, images) if can_join else place, []).append(unit)
        return [unit for group in groups.values() for unit in self._joined(group)]

    def _alone(self, content: Content, place: int) -> _Unit:
        dialogue = self._packer.inference(content)
        rendered = self._encoder.backbone.processor.render(dialogue)
        return _Unit(dialogue, (place,), rendered, rendered.cost)

    def _joined(self, group: list[_Unit]) -> Iterator[_Unit]:
        """Yield dialogues whose turns see their images and themselves, as they would alone."""
        if len(group) == 1:
            yield from group
            return
        for start in range(0, len(group), _MOST_TURNS):
            members = group[start : start + _MOST_TURNS]
            turns = tuple(turn for unit in members for turn in unit.dialogue.turns)
            one = replace(members[0].dialogue, turns=turns, context="isolated")
            alone = Cost(
                tokens=sum(unit.rendered.cost.tokens for unit in members),
                patches=sum(unit.rendered.cost.patches for unit in members),
            )
            places = tuple(place for unit in members for place in unit.places)
            yield _Unit(one, places, self._encoder.backbone.processor.render(one), alone)


def _image_id(content: Content) -> int:
    if not content.images:
        return 0
    return stable_id(*(str(image.content_id) for image in content.images))


def _named(error: DataError, contents: list[Content]) -> DataError:
    """Say which content holds the image that cannot be read."""
    for content in contents:
        try:
            for image in stills(content.images):
                image.decode()
        except DataError as cause:
            return DataError(f"{cause}, in what reads {content.text[:80]!r}")
    return error

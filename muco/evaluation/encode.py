"""Embed contents: each distinct one once, in chunks of similar length, stored as soon as it is embedded."""

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
"""A progress bar: (windows, their number) -> the same windows."""

WINDOW = 256
"""Contents that are in memory at once, and that chunks of similar length are made of. Windows depend neither
on the number of processes nor on what the store has already, so that vectors do not either, bit for bit."""
_MAX_TURNS = 32
"""Turns of one image in one pass."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of contents, with their ids."""

    vectors: StoredVectors
    content_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    """Equal where the images are equal; 0 without images."""


@dataclass
class Passes:
    """What this process has encoded, and (`_alone`) what it would have cost one content at a time."""

    num_contents: int = 0
    num_passes: int = 0
    """Dialogues. With `join_turns` one dialogue has all contents that share its images."""
    tokens: int = 0
    tokens_alone: int = 0
    patches: int = 0
    patches_alone: int = 0
    cut_texts: int = 0
    """Texts that were cut to the backbone's context."""


@dataclass(frozen=True)
class _Unit:
    """A dialogue, and the contents of the window that its turns embed."""

    dialogue: Dialogue
    rows: tuple[int, ...]
    rendered: Rendered
    cost_alone: Cost
    """Of the contents, one dialogue each."""


class CachedEmbedder:
    """Embeds contents with a trained encoder; what its store has already is not embedded again."""

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
        """Take a model, on its device, and a store of its vectors only, open for writing.

        `packer` makes a dialogue of a content, with the prompts of training; `batch_tokens` language-model
        tokens and image patches are encoded at once. `join_turns` encodes contents with the same images in
        one pass, isolated from each other, for a backbone that offers `isolated_turns`.
        """
        self._encoder = encoder.eval()
        self._packer = packer
        self._store = store
        self._budget = Cost(tokens=batch_tokens, patches=batch_tokens)
        self._join_turns = join_turns
        self._ranks = ranks or Ranks()
        self.device = next(encoder.parameters()).device
        self._seen = np.empty(0, dtype=np.int64)
        self._pools: dict[int, tuple[Sequence[Content], Embedded]] = {}
        self._num_windows = 0
        self.passes = Passes()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that scores; all of them encode."""
        return self._ranks.is_main

    def encode(self, contents: Sequence[Content], track: Track = lambda windows, _: windows) -> Embedded:
        """Return the contents' vectors, unit length; equal contents share one.

        Every process calls this with the same contents. Raise MucoError if a vector is not finite,
        DataError if an image cannot be read.
        """
        if id(contents) in self._pools:
            _, embedded = self._pools[id(contents)]
            return replace(embedded, vectors=self._store.vectors(embedded.content_ids))
        content_ids, image_ids = self._identify(contents)
        windows = self._windows(content_ids, image_ids)
        world_size = self._ranks.world_size
        mine = windows[(self._ranks.rank - self._num_windows) % world_size :: world_size]
        self._num_windows += len(windows)
        for window in track(mine, len(mine)):
            missing = self._store.find(content_ids[window]) < 0
            if missing.any():
                self._embed_window([contents[row] for row in window.tolist()], content_ids[window], missing)
        self._ranks.wait()
        self._store.refresh()
        self._seen = np.union1d(self._seen, content_ids)
        embedded = Embedded(self._store.vectors(content_ids), content_ids, image_ids)
        self._pools[id(contents)] = (contents, embedded)
        return embedded

    def forget(self, contents: Sequence[Content]) -> None:
        """Free the ids of contents that are not encoded again."""
        self._pools.pop(id(contents), None)

    def _identify(self, contents: Sequence[Content]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return content ids and image ids, int64 [number of contents]; each process reads its share."""
        world_size, rank = self._ranks.world_size, self._ranks.rank
        mine = range(len(contents) * rank // world_size, len(contents) * (rank + 1) // world_size)
        ids = [(content.content_id, _image_id(content)) for content in map(contents.__getitem__, mine)]
        all_ids = self._ranks.join_rows(torch.tensor(ids, dtype=torch.int64).view(-1, 2)).numpy()
        return all_ids[:, 0].copy(), all_ids[:, 1].copy()

    def _windows(
        self, content_ids: NDArray[np.int64], image_ids: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Return the rows of contents that are new in this run, by window; those of one image together."""
        _, first = np.unique(content_ids, return_index=True)
        rows = np.sort(first)
        rows = rows[~np.isin(content_ids[rows], self._seen)]
        if self._join_turns and len(rows):
            keys = np.where(image_ids[rows] == 0, content_ids[rows], image_ids[rows])
            _, first_of_key, key_index = np.unique(keys, return_index=True, return_inverse=True)
            rows = rows[np.argsort(first_of_key[key_index], kind="stable")]
        return [rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)]

    @torch.no_grad()  # not inference_mode: what a model caches must serve the training that goes on
    def _embed_window(
        self, contents: list[Content], content_ids: NDArray[np.int64], missing: NDArray[np.bool_]
    ) -> None:
        """Embed the chunks of a window that have something missing, and store what is missing."""
        units = self._units(contents)
        padded = self._encoder.backbone.processor.padded
        for chunk in plan_chunks([unit.rendered.cost for unit in units], self._budget, padded=padded):
            chosen = [units[index] for index in chunk]
            rows = np.array([row for unit in chosen for row in unit.rows])
            is_missing = missing[rows]
            if is_missing.any():
                vectors = self._embed(chosen, [contents[row] for row in rows])
                self._store.add(content_ids[rows[is_missing]].tolist(), vectors[torch.from_numpy(is_missing)])
                self.passes.num_passes += len(chosen)
                for unit in chosen:
                    self.passes.num_contents += len(unit.rows)
                    self.passes.tokens += unit.rendered.cost.tokens
                    self.passes.tokens_alone += unit.cost_alone.tokens
                    self.passes.patches += unit.rendered.cost.patches
                    self.passes.patches_alone += unit.cost_alone.patches

    def _embed(self, units: list[_Unit], contents: list[Content]) -> Tensor:
        """Return the vectors of the units' contents, float32 [number of contents, D], on the CPU."""
        try:
            inputs = self._encoder.backbone.processor.collate([unit.rendered for unit in units])
        except DataError as error:
            raise _with_content(error, contents) from error
        self.passes.cut_texts += inputs.num_cut_texts
        vectors = self._encoder(inputs.to(self.device)).vectors.float().cpu()
        broken = ~torch.isfinite(vectors).all(1)
        if broken.any():
            content = contents[int(broken.nonzero()[0])]
            raise MucoError(
                f"the embedding of {content.text[:80]!r} with {len(content.images)} images is not finite; "
                "the weights are broken. Evaluate an earlier checkpoint, or train anew."
            )
        return vectors

    def _units(self, contents: list[Content]) -> list[_Unit]:
        single = [self._single(content, row) for row, content in enumerate(contents)]
        if not self._join_turns:
            return single
        groups: dict[object, list[_Unit]] = {}
        for row, unit in enumerate(single):
            images = tuple(image.content_id for image in unit.dialogue.images)
            can_join = images and len(unit.dialogue.turns) == 1
            groups.setdefault((unit.dialogue.system, images) if can_join else row, []).append(unit)
        return [unit for group in groups.values() for unit in self._joined(group)]

    def _single(self, content: Content, row: int) -> _Unit:
        dialogue = self._packer.inference(content)
        rendered = self._encoder.backbone.processor.render(dialogue)
        return _Unit(dialogue, (row,), rendered, rendered.cost)

    def _joined(self, group: list[_Unit]) -> Iterator[_Unit]:
        """Yield dialogues whose turns attend to the images and to themselves only."""
        if len(group) == 1:
            yield from group
            return
        for start in range(0, len(group), _MAX_TURNS):
            members = group[start : start + _MAX_TURNS]
            turns = tuple(turn for unit in members for turn in unit.dialogue.turns)
            dialogue = replace(members[0].dialogue, turns=turns, context="isolated")
            costs = [unit.cost_alone for unit in members]
            cost_alone = Cost(sum(each.tokens for each in costs), sum(each.patches for each in costs))
            rows = tuple(row for unit in members for row in unit.rows)
            yield _Unit(dialogue, rows, self._encoder.backbone.processor.render(dialogue), cost_alone)


def _image_id(content: Content) -> int:
    return stable_id(*(str(image.content_id) for image in content.images)) if content.images else 0


def _with_content(error: DataError, contents: list[Content]) -> DataError:
    """Return an error that also says which content has the image that cannot be read."""
    for content in contents:
        try:
            for image in stills(content.images):
                image.decode()
        except DataError as cause:
            return DataError(f"{cause}, in the content with the text {content.text[:80]!r}")
    return error

"""The inputs of a training step: plan, read, pack, render and collate, in a data worker."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import Dataset

from muco.core.backbone import Cost, Processor, Rendered
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.errors import DataError
from muco.core.ids import stable_id
from muco.core.packer import Packer
from muco.core.sample import Sample
from muco.core.sampler import Catalog, Sampler
from muco.core.turns import EncoderInputs, TurnIds
from muco.data.shards.reader import ShardReader
from muco.model.batching import plan_chunks
from muco.training.dialogue_budget import Fitted, drop_overlong_turns

Render = Callable[[Dialogue], Rendered]


@dataclass(frozen=True)
class SideInputs:
    """The queries or the targets of one rank's share of a step."""

    chunks: tuple[EncoderInputs, ...]
    """They contain each distinct dialogue once."""
    row_index: Tensor
    """int64 [N]: the row of each turn's embedding in the concatenated embeddings of the chunks."""
    ids: TurnIds
    """Identities of the N turns."""


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read, and why."""

    sample: str
    reason: str


@dataclass(frozen=True)
class StepInputs:
    """One rank's share of a step."""

    step: int
    epoch: int
    queries: SideInputs
    targets: SideInputs
    samples: tuple[str, ...]
    """Names of the samples for messages: data set, shard and index."""
    unreadable: tuple[Unreadable, ...]
    num_dropped: int = 0
    """Turns and hard negatives dropped because of `max_dialogue_tokens`."""


class StepBatches(Dataset[StepInputs]):
    """Item `s` holds the inputs of step `s`. It depends on nothing else, so any worker can compute it."""

    def __init__(
        self,
        *,
        readers: Mapping[str, ShardReader],
        sampler: Sampler,
        packer: Packer,
        processor: Processor,
        global_batch_size: int,
        seed: int,
        chunk_tokens: int | None = None,
        max_dialogue_tokens: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.readers = readers
        self.catalog: Catalog = {name: len(reader) for name, reader in readers.items()}
        self.sampler = sampler
        self.packer = packer
        self.processor = processor
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.budget = _budget(chunk_tokens)
        self.max_dialogue_tokens = max_dialogue_tokens
        self.rank = rank
        self.num_ranks = num_ranks
        self.steps_per_epoch = sampler.num_batches(self.catalog, batch_size=global_batch_size)

    def chunked(self, chunk_tokens: int | None) -> StepBatches:
        """Return the same batches in chunks of at most `chunk_tokens` tokens and patches."""
        other = copy.copy(self)
        other.budget = _budget(chunk_tokens)
        return other

    def of_rank(self, rank: int) -> StepBatches:
        """Return another rank's share of the same batches."""
        other = copy.copy(self)
        other.rank = rank
        return other

    def __getitem__(self, step: int) -> StepInputs:
        epoch, position = divmod(step, self.steps_per_epoch)
        plan = self.sampler.plan(
            self.catalog, batch_size=self.global_batch_size, seed=self.seed, epoch=epoch, position=position
        )
        packed: list[tuple[str, DialoguePair]] = []  # with the samples' names
        broken: list[Unreadable] = []
        num_dropped = 0
        # The budget needs the cost of a dialogue before it is collated; the cache avoids a second rendering.
        render = cache(self.processor.render)
        for ref in plan.samples[self.rank :: self.num_ranks]:
            reader = self.readers[ref.dataset]
            name = f"{ref.dataset}/{reader.name(ref.index)}"
            try:
                sample = reader[ref.index]
                # Sample ids are unique within one data set of the recipe only.
                sample = replace(sample, dataset=f"{ref.dataset}/{sample.dataset}")
                fitted = self._pack(sample, epoch, step, render)
                num_dropped += fitted.num_dropped
                if fitted.pair is not None:
                    packed.append((name, fitted.pair))
            except DataError as error:
                broken.append(Unreadable(name, str(error)))
        try:
            sides = self._sides([pair for _, pair in packed], render)
        except DataError:  # an image cannot be decoded, for example
            problems = [self._problem(pair, render) for _, pair in packed]
            broken += [
                Unreadable(name, text) for (name, _), text in zip(packed, problems, strict=True) if text
            ]
            packed = [each for each, text in zip(packed, problems, strict=True) if not text]
            sides = self._sides([pair for _, pair in packed], render)
        names = tuple(name for name, _ in packed)
        return StepInputs(step, epoch, *sides, names, tuple(broken), num_dropped)

    def _problem(self, pair: DialoguePair, render: Render) -> str:
        """Return why a sample's dialogues cannot be collated; empty if they can."""
        try:
            self.processor.collate([render(each) for each in pair.queries + pair.targets + pair.negatives])
        except DataError as error:
            return str(error)
        return ""

    def _pack(self, sample: Sample, epoch: int, step: int, render: Render) -> Fitted:
        """Pack with generators seeded by step and sample, and drop turns beyond `max_dialogue_tokens`."""
        step_seed = (str(self.seed), str(epoch), str(step))
        pair = self.packer.pack(
            sample,
            batch_random=random.Random(stable_id("batch", *step_seed)),
            sample_random=random.Random(stable_id("sample", *step_seed, sample.dataset, sample.sample_id)),
        )
        if self.max_dialogue_tokens is None:
            return Fitted(pair, 0)
        max_tokens = self.max_dialogue_tokens
        return drop_overlong_turns(pair, max_tokens=max_tokens, count=lambda each: render(each).cost.tokens)

    def _sides(self, pairs: Sequence[DialoguePair], render: Render) -> tuple[SideInputs, SideInputs]:
        queries = [dialogue for pair in pairs for dialogue in pair.queries]
        targets = [dialogue for pair in pairs for dialogue in pair.targets + pair.negatives]
        return self._side(queries, render), self._side(targets, render)

    def _side(self, dialogues: Sequence[Dialogue], render: Render) -> SideInputs:
        """Collate each distinct dialogue once, and note the row of each turn."""
        keyed = [(dialogue.content_key, dialogue) for dialogue in dialogues]
        distinct = dict(reversed(keyed))  # of equal ones the first
        order = list(dict.fromkeys(key for key, _ in keyed))
        rendered = [render(distinct[key]) for key in order]
        costs = [each.cost for each in rendered]
        # A chunk encodes an image once, so dialogues about it should not be in several chunks.
        groups = [_images_of(distinct[key]) or key for key in order]
        plan = plan_chunks(costs, self.budget, padded=self.processor.padded, groups=groups)
        first_row: dict[object, int] = {}
        num_rows = 0
        for index in chain(*plan):
            first_row[order[index]] = num_rows
            num_rows += len(distinct[order[index]].turns)
        rows = [first_row[key] + turn for key, dialogue in keyed for turn in range(len(dialogue.turns))]
        return SideInputs(
            chunks=tuple(self.processor.collate([rendered[index] for index in chunk]) for chunk in plan),
            row_index=torch.tensor(rows, dtype=torch.int64),
            ids=TurnIds.of([turn.key for dialogue in dialogues for turn in dialogue.turns]),
        )


def _budget(chunk_tokens: int | None) -> Cost | None:
    return None if chunk_tokens is None else Cost(chunk_tokens, chunk_tokens)


def _images_of(dialogue: Dialogue) -> tuple[int, ...]:
    return tuple(image.content_id for image in dialogue.images)

"""A packer arranges a sample into dialogues. It adds prompts and does not tokenize."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from muco.core.component import Component, Kind
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.sample import Content, Sample


class Packer(Component, ABC):
    """Arrange samples for training, and single contents for inference with the same prompts."""

    kind: ClassVar[Kind] = "packer"

    @abstractmethod
    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        """Return the query dialogues and the target dialogues.

        Args:
            sample: one record.
            batch_random: a new generator seeded by (seed, epoch, step), equal for all samples of a batch.
            sample_random: a new generator seeded by (seed, epoch, step, sample id).

        The result must not depend on which worker or rank packs the sample: draw from these two only.
        """

    @abstractmethod
    def inference(self, content: Content) -> Dialogue:
        """Return the one-turn dialogue that embeds `content` after training."""

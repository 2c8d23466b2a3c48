"""The packer arranges a sample into dialogues; it knows prompts and no tokenizer."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from muco.core.component import Component, Kind
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.sample import Content, Sample


class Packer(Component, ABC):
    """Arrange samples for training, and single contents for inference, in the same words."""

    kind: ClassVar[Kind] = "packer"

    @abstractmethod
    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        """Return both sides' dialogues.

        Args:
            sample: one record.
            batch_random: seeded by (seed, epoch, step): the same for every sample of a batch.
            sample_random: seeded by (seed, epoch, step, sample id). Neither is ever shared, so the
                result does not depend on which worker or rank packs the sample.
        """

    @abstractmethod
    def inference(self, content: Content) -> Dialogue:
        """Return the dialogue of one turn by which `content` is embedded after training."""

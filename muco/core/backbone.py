"""The interface of backbones: a processor renders dialogues into chunks, a module encodes the chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from muco.core.component import Component, Kind
from muco.core.dialogue import Dialogue
from muco.core.errors import MucoError
from muco.core.exported import Exported, PooledState
from muco.core.layers import ModelLayers
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates


@dataclass(frozen=True)
class Cost:
    """The size of a dialogue or chunk: language-model tokens, and image patches of the vision tower."""

    tokens: int
    patches: int
    images: Mapping[Any, int] = field(default_factory=dict[Any, int])
    """Of `patches`, those of each image that a chunk encodes once, however many of its dialogues have it."""


class Rendered(Protocol):
    """A dialogue as `Processor.render` returns it; the engine reads only its cost."""

    @property
    def cost(self) -> Cost:
        """The dialogue's tokens and patches, without padding."""
        ...


class Processor(ABC):
    """The part of a backbone without weights: tokenizer, image processor, chat template.

    It must be picklable, because data workers get a copy.
    """

    padded: bool = False
    """Whether `collate` pads each dialogue to the longest of its chunk; padding counts against the budget."""

    @abstractmethod
    def render(self, dialogue: Dialogue) -> Rendered:
        """Return `dialogue` as `collate` takes it, or raise DataError. Of images only headers are read."""

    @abstractmethod
    def collate(self, rendered: Sequence[Any]) -> EncoderInputs:
        """Return one chunk, on the CPU, of one or more rendered dialogues; its turns are in their order.

        `muco.model.batching` decides which go together. Images are decoded here; raise DataError if one
        is broken.
        """

    def prepare(self, dialogues: Iterable[Dialogue]) -> EncoderInputs:
        """Render dialogues and collate them into one chunk; see `render` and `collate`."""
        return self.collate([self.render(dialogue) for dialogue in dialogues])

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all that `Backbone.load` needs to build this processor again."""


class Backbone(Component, nn.Module, ABC):
    """Encode chunks of turns into hidden states."""

    kind: ClassVar[Kind] = "backbone"
    processor: Processor
    hidden_dim: int
    """H of the hidden states."""
    sizes: Mapping[str, Any] | None = None
    """The configuration of the model as plain data, for `layers_of`; None if FLOPs cannot be counted."""

    @classmethod
    def sizes_of(cls, config: Any) -> Mapping[str, Any] | None:
        """Return the `sizes` of the model that these settings build, from `random_init` or local files.

        No weights are loaded and nothing is downloaded. None, by default: not known from the settings.
        """
        return None

    @classmethod
    def layers_of(cls, config: Any, sizes: Mapping[str, Any]) -> ModelLayers | None:
        """Return the layers of a model of `sizes`, as of `sizes_of`; None, by default: not known."""
        return None

    @classmethod
    def hidden_dim_of(cls, config: Any) -> int | None:
        """Return the H of these settings; None, by default: it is not known before a build."""
        return None

    @classmethod
    @abstractmethod
    def build(cls, config: Any, *, texts: Iterable[str]) -> Self:
        """Return a new backbone: pretrained weights, or random weights drawn with torch's global generator.

        A backbone that trains a tokenizer trains it on `texts`, the training texts.
        """

    @classmethod
    @abstractmethod
    def load(cls, config: Any, folder: Path) -> Self:
        """Return the backbone that `save` wrote; raise DataError if a weight is missing or unexpected."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and processor to `folder`."""

    @abstractmethod
    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        """Return the last hidden states of one chunk, which is on this module's device.

        `images` is the output of `encode_images` for the chunk; None to compute it here.
        """

    @abstractmethod
    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        """Return the vision tower's output for the chunk's images; None if the chunk has no images."""

    def startup_summary(self, device: torch.device, *, half: bool) -> str:
        """Return one line for the start of a run, for example the attention kernel; empty for none.

        The backbone will run on `device`, in 16-bit precision if `half`. Raise MucoError if a setting of the
        recipe cannot run there.
        """
        return ""

    def merge_adapters(self) -> None:
        """Merge adapters, if there are any, into the weights that they adapt. Embeddings do not change.

        After that, `load` reads what `save` writes with `adapter: null`.
        """

    def export(self, folder: Path, *, system: str, pooled: PooledState) -> Exported:
        """Write the model as transformers reads it, with processor and chat template; `load` reads it too.

        Adapters are merged before. The folder exists. By default this raises MucoError.

        Args:
            folder: to write to.
            system: the system text of chats that have none; empty for none.
            pooled: the state that the pooler takes.

        Raises:
            MucoError: transformers has no model that gives the same vectors; the message says why.
        """
        raise MucoError(f"backbone {type(self).__name__} cannot be exported: it has no form in transformers")

    def shardable_modules(self) -> Iterable[nn.Module]:
        """Return the modules whose weights may be sharded over processes, inner ones first; none by default.

        The trained weights of a module must have one dtype. A step reaches the modules only by calling them,
        within `encode`. The weights of `encode_images` are not sharded.
        """
        return ()

    def checkpoint_gradients(self) -> bool:
        """Store only the input of each layer from now on, and compute the layer again in the backward pass.

        Return whether this changes anything: False if it is so already, and by default, if it cannot be done.
        """
        return False

    def image_parameters(self) -> Iterable[nn.Parameter]:
        """Return the weights of `encode_images`. If none is trained, its output is computed once per step."""
        return self.parameters()

"""Encode with an exported folder without muco: by sentence-transformers, or by transformers alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from muco.core.exported import Exported
from muco.core.sample import Content


class Reader(ABC):
    """Encodes with the files of a folder only, in float32."""

    name: str

    @abstractmethod
    def encode(self, contents: Sequence[Content]) -> Tensor:
        """Return the vectors of one batch, float32 [N, D] on the CPU, unit length."""


def open_folder(folder: Path, exported: Exported, device: torch.device) -> Reader:
    """Return a reader by sentence-transformers where it is installed, else by transformers."""
    if find_spec("sentence_transformers") is not None:
        return SentenceTransformersReader(folder, device)
    return TransformersReader(folder, exported, device)


class SentenceTransformersReader(Reader):
    """The folder as `SentenceTransformer(folder)` loads it."""

    name = "sentence-transformers"

    def __init__(self, folder: Path, device: torch.device) -> None:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

        self.model = SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, model_kwargs={"dtype": torch.float32}
        )

    def encode(self, contents: Sequence[Content]) -> Tensor:  # noqa: D102
        if any(len(content.images) > 1 for content in contents):
            inputs: list[Any] = [[_message(content)] for content in contents]
        else:
            inputs = [_input(content) for content in contents]
        vectors = self.model.encode(inputs, batch_size=len(inputs), convert_to_tensor=True)
        return vectors.float().cpu()


class TransformersReader(Reader):
    """The folder as `AutoModel` and `AutoProcessor` load it; pooling and projection are written out here."""

    name = "transformers"

    def __init__(self, folder: Path, exported: Exported, device: torch.device) -> None:
        from transformers import AutoModel, AutoProcessor

        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        self.model = self.model.eval().to(device)
        self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self.exported = exported
        modules = json.loads((folder / "modules.json").read_text())
        dense = [folder / each["path"] for each in modules if each["type"].endswith(".Dense")]
        self.projection = load_file(dense[0] / "model.safetensors", str(device)) if dense else None

    @torch.inference_mode()
    def encode(self, contents: Sequence[Content]) -> Tensor:  # noqa: D102
        inputs = self._inputs(contents).to(self.model.device)
        method, field = self.exported.methods[_kind(contents[0])]
        states = getattr(getattr(self.model, method)(**inputs), field)
        if self.exported.pools_last_token:
            mask = inputs["attention_mask"]
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            states = states[torch.arange(len(states)), last]
        if self.projection is not None:
            states = F.linear(states, self.projection["linear.weight"], self.projection.get("linear.bias"))
        return F.normalize(states, dim=-1).float().cpu()

    def _inputs(self, contents: Sequence[Content]) -> Any:
        if "message" in self.exported.methods:
            return self.processor.apply_chat_template(
                [[_message(content)] for content in contents],
                tokenize=True,
                return_dict=True,
                sanitize_control_tokens=self.exported.sanitizes,
                processor_kwargs={"padding": True, "return_tensors": "pt"},
            )
        texts = [content.text for content in contents if content.text]
        images = [image.decode() for content in contents for image in _stills(content)]
        padding = {"padding": True, "truncation": True} if texts else {}
        return self.processor(text=texts or None, images=images or None, return_tensors="pt", **padding)


def _kind(content: Content) -> str:
    return "+".join(["image"] * bool(content.images) + ["text"] * bool(content.text))


def _stills(content: Content) -> Sequence[Any]:
    return content.images


def _input(content: Content) -> Any:
    """Return a content as `SentenceTransformer.encode` takes it."""
    images = [image.decode() for image in _stills(content)]
    if not images:
        return content.text
    return {"image": images[0], "text": content.text} if content.text else images[0]


def _message(content: Content) -> dict[str, Any]:
    """Return a content as a message of a chat."""
    images = [{"type": "image", "image": image.decode()} for image in _stills(content)]
    texts = [{"type": "text", "text": content.text}] if content.text else []
    return {"role": "user", "content": [*images, *texts]}

"""A model of muco for `mteb.evaluate`. Needs the package mteb: `pip install 'muco[mteb]'`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from muco.embedder.embedder import Embedder, Vectors
from muco.embedder.load import load

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader


class MucoEncoder(AbsEncoder):
    """Encode mteb's texts, images, and both, with the instruction in the user turn, as in training.

    Queries get the task's instruction, documents only if the task has one for documents. Items of tasks
    without queries and documents, such as classification, get the task's instruction too.

        mteb.evaluate(MucoEncoder("runs/quickstart"), tasks)
    """

    def __init__(
        self,
        model: str | Path | Embedder,
        *,
        name: str | None = None,
        instructions: Mapping[str, str] | None = None,
        instruction_template: str = "{instruction} ",
        batch_tokens: int | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: an embedder, or as for `muco.load`.
            name: `organization/name` in mteb's results; by default `muco/` and the name of the run.
            instructions: by name or type of task, or `query` and `document`; they replace mteb's own.
            instruction_template: what is put before the text; `{instruction}` stands for the instruction.
            batch_tokens: as for `Embedder.encode`. mteb's batch size is not used.
        """
        embedder = self.model = model if isinstance(model, Embedder) else load(model)
        self.prompts_dict = dict(instructions or {})
        self.instruction_template = instruction_template
        self.batch_tokens = batch_tokens
        self.used: dict[str, dict[str, str]] = {}
        """The instructions that were used: task -> query, document or both -> text."""
        info = embedder.info
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name or f"muco/{info.name}",
            revision=f"step-{info.step}-{info.fingerprint[:8]}",
            release_date=None,
            languages=None,
            n_parameters=embedder.num_parameters,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=info.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",  # pyright: ignore[reportArgumentType]
            use_instructions=True,
            training_datasets=None,
            modalities=["text", "image"],
            experiment_kwargs={"run": info.name},
        )

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """Return the vectors of all items in the loader's order; float32 [N, D], unit length.

        Items without text and image, which some tasks have, are encoded as a space.
        """
        instruction = self._instruction(task_metadata, prompt_type)
        side = prompt_type.value if prompt_type else "both"
        self.used.setdefault(task_metadata.name, {})[side] = instruction
        parts: list[Vectors] = []
        for batch in inputs:
            texts, images = batch.get("text"), batch.get("image")
            number = len(texts if texts is not None else images)
            items = [
                _item(texts and texts[row], None if images is None else images[row]) for row in range(number)
            ]
            parts.append(self.model.encode(items, instruction=instruction, batch_tokens=self.batch_tokens))
        return np.concatenate(parts)

    def _instruction(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        own = task_metadata.prompt
        keys = (task_metadata.name, task_metadata.type, prompt_type and prompt_type.value)
        has_own = any(key in (self.prompts_dict or {}) for key in keys)
        has_document = isinstance(own, dict) and bool(own.get("document"))
        if prompt_type == PromptType.document and not (has_own or has_document):
            return ""
        instruction = self.get_instruction(task_metadata, prompt_type)
        return self.format_instruction(instruction, prompt_type) if instruction else ""


def _item(text: str | None, image: Any) -> dict[str, Any]:
    if image is None:
        return {"text": text or " "}
    return {"text": text, "image": _pil(image)}


def _pil(image: Any) -> Any:
    """Return an image of mteb, a PIL image or a tensor [3, height, width], as a PIL image."""
    if hasattr(image, "mode"):
        return image
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(image)

"""The processor of transformers for an exported Qwen-VL."""

from __future__ import annotations

from typing import Any


def transformers_processor(tokenizer: Any, image_processor: Any, family: str, chat_template: str) -> Any:
    """Return the family's processor; its video processor has the family's own settings."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    cls: Any = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
    }[family]
    videos = Qwen3VLVideoProcessor if family == "qwen3_vl" else Qwen2VLVideoProcessor
    sizes = {
        name: getattr(image_processor, name) for name in ("patch_size", "temporal_patch_size", "merge_size")
    }
    return cls(image_processor, tokenizer, videos(**sizes), chat_template=chat_template)

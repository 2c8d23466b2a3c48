"""The processor of transformers for an exported LLaVA."""

from __future__ import annotations

from typing import Any


def transformers_processor(tokenizer: Any, image_processor: Any, config: Any, chat_template: str) -> Any:
    """Return the processor of the model's family; it counts the tokens of images as the model does."""
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, LlavaProcessor
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    vision = config.vision_config
    tower_tokens = (vision.image_size // vision.patch_size) ** 2
    common = {
        "tokenizer": tokenizer,
        "image_processor": image_processor,
        "chat_template": chat_template,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    if config.model_type == "llava_onevision":
        side = {"height": vision.image_size, "width": vision.image_size}
        videos = LlavaOnevisionVideoProcessor(size=side)
        return LlavaOnevisionProcessor(
            **common,
            video_processor=videos,
            num_image_tokens=tower_tokens,
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
    cls = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}[config.model_type]
    has_class_token = vision.model_type == "clip_vision_model"
    return cls(**common, patch_size=vision.patch_size, num_additional_image_tokens=int(has_class_token))

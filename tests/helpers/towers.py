"""Random towers in the layout of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def towers_of(vision: dict[str, Any], text: dict[str, Any], folder: Path) -> Path:
    """Write random towers of an open_clip configuration as a checkpoint, and return its folder."""
    from open_clip.model import CLIP, CustomTextCLIP

    described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(1)
    # A plain CLIP has its text tower's weights without a name of their own.
    model = (CustomTextCLIP if text.get("no_causal_mask") else CLIP)(**described)
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_pytorch_model.safetensors")
    preprocess = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7], "resize_mode": "shortest"}
    custom = bool(text.get("no_causal_mask"))
    config = {"model_cfg": {**described, "custom_text": custom}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}

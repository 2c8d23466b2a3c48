"""Model folders with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.model.build import build_encoder
from muco.model.folder import save_encoder
from tests.helpers.small import SMALL, TEXTS


def write_model(
    folder: Path,
    *,
    backbone: dict[str, Any] | None = None,
    packer: Any = "single_turn",
    pooler: Any = "last_token",
    nested_dims: tuple[int, ...] = (),
    seed: int = 0,
) -> Path:
    """Write a model that was never trained, by default the smallest Qwen2-VL, and return its folder."""
    values = {
        "name": "x",
        "packer": packer,
        "backbone": backbone or {"name": "qwen_vl", **SMALL},
        "pooler": pooler,
        "evaluate": {},
    }
    settings = validate_settings(Evaluation, values, title="a test").model
    encoder = build_encoder(settings, texts=TEXTS, seed=seed)
    save_encoder(encoder, settings, folder, step=7, nested_dims=nested_dims)
    return folder

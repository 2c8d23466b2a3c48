"""Model folders as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.model.build import build_encoder
from muco.model.folder import save_encoder
from tests.helpers.small import TEXTS


def save_model(folder: Path, *, nested_dims: tuple[int, ...] = (), **parts: Any) -> Path:
    """Write a model of step 7 whose every trained weight was changed, as training would.

    Args:
        folder: to write.
        nested_dims: the sizes that its loss trained.
        parts: `backbone`, and `packer` and `pooler` for others than `single_turn` and `turn_token`.
    """
    values = {"name": "x", "packer": "single_turn", "pooler": "turn_token", "evaluate": {}, **parts}
    settings = validate_settings(Evaluation, values, title="a test").model
    encoder = build_encoder(settings, texts=TEXTS, seed=0)
    for weight in encoder.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    save_encoder(encoder, settings, folder, step=7, nested_dims=nested_dims)
    return folder

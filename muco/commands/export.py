"""`muco export`: write a trained model as a folder of its own, its adapters merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from muco.core.errors import MucoError
from muco.io.atomic import atomic_folder
from muco.model.folder import save_encoder
from muco.model.source import find_model


def export(model: str, to: Path) -> Path:
    """Write the model of a run or of a model folder, its adapters merged into its weights.

    `muco evaluate` reads the folder, `backbone.pretrained` starts from it, and the weights have the names
    that transformers, or open_clip, gives a model of the family.

    `to` appears when it is complete, and is returned.
    """
    source = find_model(model)
    if source.folder is None:
        raise MucoError(
            f"{model}: a backbone without training has nothing to export; name a run or a model folder"
        )
    if to.exists():
        raise MucoError(f"{to} is there already; name another folder")
    title = f"muco export {model}"
    loaded = source.load(source.evaluation(title).model)
    loaded.encoder.backbone.merge_adapters()
    backbone = source.values["backbone"]
    if "adapter" in backbone:
        source = replace(source, values={**source.values, "backbone": {**backbone, "adapter": None}})
    try:
        with atomic_folder(to) as partial:
            save_encoder(
                loaded.encoder,
                source.evaluation(title).model,
                partial,
                step=loaded.step,
                nested_dims=loaded.nested_dims,
            )
    except OSError as error:
        raise MucoError(f"{to}: the model cannot be written: {error}") from error
    return to

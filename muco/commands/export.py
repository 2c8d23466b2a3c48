"""`muco export`: a trained model as a folder of its own, its adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from muco.config.load import validate_evaluation
from muco.core.errors import MucoError
from muco.io.atomic import atomic_folder
from muco.model.source import Parts, find_model


def export(model: str, to: Path) -> Path:
    """Write the model folder of a run, or another model folder, with its adapters folded into its weights.

    `muco evaluate` reads it, `backbone.pretrained` starts from it, and the weights have the names that
    transformers, or open_clip, gives a model of the family.

    Args:
        model: a run folder or a model folder.
        to: the folder to write; it appears when all of it is there.

    Returns:
        `to`.

    Raises:
        MucoError: there is no model, `to` is there already, or the disk does not take it.
    """
    source = find_model(model)
    if source.folder is None:
        raise MucoError(
            f"{model}: a backbone as it comes has nothing to export; name a run or a model folder"
        )
    if to.exists():
        raise MucoError(f"{to} is there already; name another folder")
    from muco.model.folder import save_encoder

    title = f"muco export {model}"
    encoder, about = source.load(Parts.of(validate_evaluation(source.values, title=title)))
    encoder.backbone.merge_adapters()
    parts = Parts.of(validate_evaluation(_without_adapter(source.values), title=title))
    try:
        with atomic_folder(to) as partial:
            save_encoder(encoder, cast(Any, parts), partial, step=about["step"])
    except OSError as error:
        raise MucoError(f"{to}: the model cannot be written: {error}") from error
    return to


def _without_adapter(values: dict[str, Any]) -> dict[str, Any]:
    backbone: dict[str, Any] = values["backbone"]
    return {**values, "backbone": {**backbone, **({"adapter": None} if "adapter" in backbone else {})}}

"""Load a trained model for use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from muco.core.errors import MucoError
from muco.embedder.embedder import Embedder
from muco.model.source import find_model
from muco.run_folder import RunFolder
from muco.vectors.store import VectorStore

if TYPE_CHECKING:
    import torch


def load(
    path_or_name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Embedder:
    """Return a model that turns texts and images into vectors.

    Args:
        path_or_name: a run folder, a model folder, a folder that `muco export` wrote, or the hub name
            (owner/name) of such a folder.
        device: where it runs; None for CUDA where there is a device, else the CPU.
        dtype: of the weights, "float32" or "bfloat16"; None for that of training. Vectors are float32.

    Raises:
        MucoError: there is no model, it is damaged, or its backbone has no such dtype.
    """
    import torch

    source = find_model(str(path_or_name))
    name = str(dtype).removeprefix("torch.")
    overrides = () if dtype is None else (f"backbone.dtype={name}",)
    settings = source.evaluation(f"muco.load({str(path_or_name)!r})", overrides=overrides)
    model = source.load(settings.model)
    model.encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = None if source.run is None else RunFolder(source.run).recipe()
    return Embedder(model, settings.name, recipe)


def load_for_store(store: VectorStore, model: str | None) -> Embedder:
    """Return the model of a store: `model`, or the one that made the store, by the name or path it had.

    Raise MucoError if it cannot be loaded, or did not make the store.
    """
    try:
        embedder = load(model or store.metadata.model)
    except MucoError as error:
        if model:
            raise
        raise MucoError(
            f"the model that made {store.path} cannot be loaded; name it with --model\n{error}"
        ) from error
    store.check_model(embedder.info.fingerprint, embedder.info.name)
    return embedder

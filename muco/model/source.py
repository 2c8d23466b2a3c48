"""Find and load a model: a run folder, a model folder, or a backbone's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from muco.config.load import validate_settings
from muco.config.recipe import Evaluation, ModelSettings
from muco.console import quiet_libraries
from muco.core.component_ref import is_mapping
from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError, did_you_mean
from muco.core.registry import default_registry
from muco.model.build import build_encoder
from muco.model.folder import METADATA_FILE, LoadedModel, load_model, read_metadata
from muco.model.hub import hub_folder, is_hub_name
from muco.run_folder import RunFolder


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    values: dict[str, Any]
    """The keys of its `Evaluation`, without suites."""
    folder: Path | None
    """The model folder; None for a backbone that is built."""
    run: Path | None
    """The run folder that the model is in."""

    def evaluation(
        self, title: str, *, suites: Sequence[dict[str, Any]] = (), overrides: Sequence[str] = ()
    ) -> Evaluation:
        """Return the validated settings of an evaluation of this model.

        Args:
            title: begins an error's message.
            suites: as in a recipe.
            overrides: `KEY=VALUE` each, of the evaluation's keys.

        Raises:
            MucoError: a key or value that is not allowed.
        """
        values = {**self.values, "evaluate": {**self.values["evaluate"], "suites": list(suites)}}
        return validate_settings(Evaluation, values, overrides, title=title)

    def load(self, settings: ModelSettings) -> LoadedModel:
        """Return the model; a backbone without a folder is built, its random weights from seed 0."""
        quiet_libraries()
        if self.folder is not None:
            return load_model(settings, self.folder)
        encoder = build_encoder(settings, texts=(), seed=0)
        return LoadedModel(settings, settings.packer.make(), encoder, _hash_of(encoder), step=0)


def find_model(model: str) -> ModelSource:
    """Return where a model comes from: a run folder, a model folder, its hub name, or a backbone's name."""
    path = Path(model)
    if (path / "recipe.yaml").is_file():
        recipe = RunFolder(path).recipe() or {}
        folder = RunFolder(path).model
        if not (folder / METADATA_FILE).is_file():
            raise MucoError(f"{path}: the run has no model yet; train it first: muco-run {path}/recipe.yaml")
        settings = recipe.get("evaluate") or {}
        if not is_mapping(settings):
            raise MucoError(f"{path / 'recipe.yaml'}: `evaluate` must be a mapping; no run writes it so")
        return ModelSource(_values(folder, str(recipe.get("name")), settings), folder, path)
    if (path / METADATA_FILE).is_file():
        return ModelSource(_values(path, path.resolve().name, {}), path, None)
    if path.exists():
        raise MucoError(
            f"{model}: neither a run folder (it has no recipe.yaml) nor a model folder (it has no muco.json)"
        )
    known = [entry.name for entry in default_registry().entries("backbone")]
    if is_hub_name(model):
        folder = hub_folder(model)
        return ModelSource(_values(folder, model.partition("/")[2], {}), folder, None)
    if model not in known:
        raise MucoError(
            f"{model}: no such folder, and no backbone of that name.{did_you_mean(model, known)}\n"
            f"Give a run folder, a model folder, a hub name (owner/name), or a backbone: {', '.join(known)}."
        )
    parts = {"packer": "single_turn", "backbone": {"name": model}, "pooler": "last_token"}
    return ModelSource({"name": model, **parts, "evaluate": {}}, None, None)


def _values(folder: Path, name: str, evaluate_settings: dict[str, Any]) -> dict[str, Any]:
    saved = read_metadata(folder)
    settings = {kind: saved[kind] for kind in ("packer", "backbone", "pooler")}
    return {"name": name, **settings, "evaluate": evaluate_settings}


def _hash_of(encoder: TurnEncoder) -> str:
    """Return a hash of weights and processor: equal hash, equal embeddings."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with TemporaryDirectory() as folder:
        encoder.backbone.processor.save(Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()

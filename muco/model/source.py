"""Where a model comes from: a run folder, a model folder, or the name of a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from muco.config.recipe import Evaluation, Recipe
from muco.core.component_ref import ComponentRef, is_mapping
from muco.core.errors import MucoError, did_you_mean
from muco.core.registry import default_registry
from muco.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from muco.core.encoder import TurnEncoder


@dataclass(frozen=True)
class Parts:
    """What of a recipe decides an embedding."""

    packer: ComponentRef[Any]
    backbone: ComponentRef[Any]
    pooler: ComponentRef[Any]

    @classmethod
    def of(cls, recipe: Recipe | Evaluation) -> Parts:
        """Return a recipe's parts."""
        return cls(recipe.packer, recipe.backbone, recipe.pooler)

    def dump(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "packer": self.packer.dump(),
            "backbone": self.backbone.dump(),
            "pooler": self.pooler.dump(),
        }


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    values: dict[str, Any]
    """The keys of its `Evaluation`."""
    folder: Path | None
    """The model folder; None for a backbone that is built."""
    results: Path | None
    """The run folder that the results belong to."""

    def load(self, parts: Parts) -> tuple[TurnEncoder, dict[str, Any]]:
        """Return the encoder, and a hash of its weights with the step that they are of."""
        from muco.model.folder import load_encoder, trained_steps, weights_hash

        quiet_libraries()
        if self.folder is None:
            encoder = _built(parts)
            return encoder, {"weights": _hash_of(encoder), "step": 0}
        encoder = load_encoder(cast(Any, parts), self.folder)
        return encoder, {"weights": weights_hash(self.folder), "step": trained_steps(self.folder)}


def find_model(model: str) -> ModelSource:
    """Return where a model comes from: a run folder, a model folder, or a backbone's name.

    Raises:
        MucoError: it is none of them.
    """
    from muco.model.folder import METADATA_FILE

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
    registry = default_registry()
    known = [entry.name for entry in registry.entries("backbone")]
    if model not in known:
        raise MucoError(
            f"{model}: no such folder, and no backbone of that name.{did_you_mean(model, known)}\n"
            f"Give a run folder, a model folder, or a backbone: {', '.join(known)}."
        )
    parts = {"packer": "single_turn", "backbone": {"name": model}, "pooler": "last_token"}
    return ModelSource({"name": model, **parts}, None, None)


def _values(folder: Path, name: str, evaluate_settings: dict[str, Any]) -> dict[str, Any]:
    from muco.model.folder import read_metadata

    saved = read_metadata(folder)
    return {
        "name": name,
        **{part: saved[part] for part in ("packer", "backbone", "pooler")},
        "evaluate": evaluate_settings,
    }


def _built(parts: Parts) -> TurnEncoder:
    import torch

    from muco.model.build import with_pooler

    torch.manual_seed(0)
    backbone = cast(Any, parts.backbone.cls).build(parts.backbone.config, texts=())
    return with_pooler(cast(Any, parts), backbone)


def _hash_of(encoder: TurnEncoder) -> str:
    """Return a hash of weights and processor: equal hash, equal embeddings."""
    import torch

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


def quiet_libraries() -> None:
    """Keep transformers from drawing bars of its own over ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def device_of_this_process() -> torch.device:
    """Return this process's CUDA device, or the CPU."""
    import os

    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

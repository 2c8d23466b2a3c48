"""Write and read checkpoints: written under another name, renamed when complete.

`checkpoint.json` holds the recipe and the data that the steps depend on, and a digest of every other file.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from muco.config.recipe import ModelSettings
from muco.core.errors import DataError, MucoError, library_errors
from muco.core.loss import Loss
from muco.io.atomic import atomic_folder, remove_folder
from muco.io.digest import digest_of
from muco.io.untrusted import parse_json, read_file, refuse_special_files
from muco.model.build import Model
from muco.model.folder import load_encoder, save_encoder
from muco.training.early_stopping import Best

_MANIFEST = "checkpoint.json"


@dataclass
class Progress:
    """How far a run has come: the part of its state that is not tensors."""

    step: int = 0
    """Number of updates done."""
    samples_seen: int = 0
    pairs_seen: int = 0
    tokens_seen: int = 0
    unreadable: int = 0
    train_seconds: float = 0.0
    chunk_tokens: int | None = None
    """What `train.chunk_tokens: auto` chose."""
    held_tokens: int | None = None
    """What `train.held_tokens: auto` chose."""
    gradient_checkpointing: bool = False
    """Whether `train.chunk_tokens: auto` turned it on."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums of the figures of a log line, since the last one."""
    validated_step: int = 0
    """The step of the last validation."""
    best: Best | None = None
    """Of `train.keep_best`."""
    early_stopping: Best | None = None
    """Of `train.early_stopping`."""


@dataclass(frozen=True)
class Origin:
    """What the steps of a run depend on."""

    recipe: dict[str, Any]
    """Resolved."""
    data: dict[str, str]
    """Fingerprint of each data set."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    folder: Path
    step: int

    def progress(self) -> Progress:
        """Return the saved progress; raise DataError if the file is missing or damaged."""
        try:
            values = parse_json(read_file(self.folder / "progress.json"))
            progress = TypeAdapter(Progress).validate_python(values)
        except (OSError, ValueError) as error:
            raise self.broken(str(error)) from error
        if progress.step != self.step:
            raise self.broken(f"progress.json is of step {progress.step}")
        return progress

    def origin(self) -> Origin:
        """Return what the steps depend on; raise DataError if a file is missing or damaged."""
        try:
            saved = parse_json(read_file(self.folder / _MANIFEST))
            origin, digests = TypeAdapter(Origin).validate_python(saved), dict(saved["files"])
            there = _digests(self.folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self.broken(str(error)) from error
        if damaged := [name for name, digest in digests.items() if there.get(name) != digest]:
            raise self.broken(f"{', '.join(damaged)} missing, or changed since the checkpoint was written")
        return origin

    def broken(self, problem: str) -> DataError:
        """Return the error of a checkpoint that cannot be used."""
        return DataError(
            f"{self.folder}: broken checkpoint: {problem}. Remove it to resume from the one before."
        )


def checkpoints(run_folder: Path) -> list[Checkpoint]:
    """Return the run's checkpoints, oldest first."""
    paths = [path for path in (run_folder / "checkpoints").glob("*") if _is_checkpoint(path)]
    return sorted((Checkpoint(path, int(path.name[5:])) for path in paths), key=lambda each: each.step)


def ignored_checkpoints(run_folder: Path) -> list[Path]:
    """Return what looks like a checkpoint and is none: a copy under another name, or an incomplete folder."""
    paths = (run_folder / "checkpoints").glob("step-*")
    return sorted(path for path in paths if not _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"step-[0-9]{6,12}", path.name) is not None and (path / _MANIFEST).is_file()


def _digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file of a checkpoint by its relative path, the manifest left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in paths}


def save_checkpoint(
    run_folder: Path,
    model: Model,
    optimizers: list[dict[str, Any]],
    progress: Progress,
    origin: Origin,
    *,
    keep: int,
    best_step: int | None = None,
) -> Path:
    """Write a checkpoint and remove all but the last `keep` and that of `best_step`.

    The state dicts of the model and `optimizers` hold full tensors. Raise MucoError if the checkpoint cannot
    be written; the earlier ones stay.
    """
    folder = run_folder / "checkpoints" / f"step-{progress.step:06d}"
    try:
        with atomic_folder(folder, replace=True, inside=run_folder) as partial:
            save_encoder(
                model.encoder,
                model.settings,
                partial / "model",
                step=progress.step,
                nested_dims=model.loss.nested_dims,
            )
            state = {"optimizers": optimizers, "loss": model.loss.state_dict()}
            torch.save(state, partial / "training.pt")
            (partial / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
            manifest = {**asdict(origin), "files": _digests(partial)}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    except Exception as error:
        earlier = checkpoints(run_folder)
        last = f"The last complete one is {earlier[-1].folder}" if earlier else "There is no earlier one"
        raise MucoError(
            f"the checkpoint of step {progress.step} cannot be written to {folder.parent}: {error}\n"
            f"{last}. Free some disk space, then continue with --resume."
        ) from error
    for old in checkpoints(run_folder)[:-keep]:
        if old.step != best_step:
            remove_folder(old.folder)
    return folder


def restore(
    checkpoint: Checkpoint, settings: ModelSettings, loss: Loss
) -> tuple[Model, list[dict[str, Any]]]:
    """Return a checkpoint's model and optimizer states; raise DataError if a file is missing or damaged."""
    encoder = load_encoder(settings, checkpoint.folder / "model")
    refuse_special_files(checkpoint.folder)
    with library_errors(f"{checkpoint.broken('training.pt')}"):
        state = torch.load(checkpoint.folder / "training.pt", weights_only=True, map_location="cpu")
        loss.load_state_dict(state["loss"])
        return Model(settings, encoder, loss), state["optimizers"]

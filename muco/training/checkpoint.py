"""Write and read checkpoints: written under another name, renamed when complete."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from muco.config.recipe import ModelSettings
from muco.core.errors import DataError, MucoError
from muco.core.loss import Loss
from muco.io.atomic import atomic_folder, remove_folder
from muco.io.json_text import parse_json
from muco.model.build import Model
from muco.model.folder import load_encoder, save_encoder


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
    window: dict[str, float] = field(default_factory=dict)
    """Sums of the figures of a log line, since the last one."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    folder: Path
    step: int

    def progress(self) -> Progress:
        """Return the progress that was saved.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            return Progress(**parse_json((self.folder / "progress.json").read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.folder}: broken checkpoint: {error}") from error


def checkpoints(run_folder: Path) -> list[Checkpoint]:
    """Return the run's checkpoints, oldest first."""
    paths = (run_folder / "checkpoints").glob("step-[0-9]*")
    return sorted((Checkpoint(path, int(path.name[5:])) for path in paths), key=lambda each: each.step)


def save_checkpoint(
    run_folder: Path, model: Model, optimizers: list[dict[str, Any]], progress: Progress, *, keep: int
) -> Path:
    """Write a checkpoint and remove all but the last `keep`.

    Args:
        run_folder: `runs/<name>`.
        model: what is trained; its state dicts hold full weights.
        optimizers: the optimizers' states, with full tensors.
        progress: how far the run has come.
        keep: number of checkpoints to keep.

    Raises:
        MucoError: it cannot be written; the earlier ones stay.
    """
    folder = run_folder / "checkpoints" / f"step-{progress.step:06d}"
    try:
        with atomic_folder(folder, replace=True) as partial:
            save_encoder(model.encoder, model.settings, partial / "model", step=progress.step)
            state = {"optimizers": optimizers, "loss": model.loss.state_dict()}
            torch.save(state, partial / "training.pt")
            (partial / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
    except Exception as error:
        earlier = checkpoints(run_folder)
        last = f"The last complete one is {earlier[-1].folder}" if earlier else "There is no earlier one"
        raise MucoError(
            f"the checkpoint of step {progress.step} cannot be written to {folder.parent}: {error}\n"
            f"{last}. Free some disk space, then continue with --resume."
        ) from error
    for old in checkpoints(run_folder)[:-keep]:
        remove_folder(old.folder)
    return folder


def restore(
    checkpoint: Checkpoint, settings: ModelSettings, loss: Loss
) -> tuple[Model, list[dict[str, Any]]]:
    """Return the model of a checkpoint, and its optimizers' states.

    Raises:
        DataError: a file is missing or damaged.
    """
    encoder = load_encoder(settings, checkpoint.folder / "model")
    try:
        state = torch.load(checkpoint.folder / "training.pt", weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"{checkpoint.folder}: broken checkpoint: {error}. Remove it to resume from the one before."
        ) from error
    loss.load_state_dict(state["loss"])
    return Model(settings, encoder, loss), state["optimizers"]

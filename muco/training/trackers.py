"""Where figures go besides train.jsonl: TensorBoard's files, and wandb, mlflow or trackio by accelerate."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from muco.core.errors import MucoError
from muco.io.atomic import refuse_links, write_text
from muco.io.untrusted import parse_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS_FILE = "trackers.json"
"""The ids of this run at its trackers, so that a resumed run goes on there."""
_PROJECT = "muco"


def missing_trackers(names: Iterable[str]) -> dict[str, str]:
    """Return, by key of the recipe, which trackers' packages are not installed."""
    missing = [name for name in names if find_spec(name) is None]
    return {
        f"train.trackers.{name}": f"the package {name} is not installed: pip install 'muco[trackers]'"
        for name in missing
    }


class Trackers:
    """The trackers of a run, in the main process. One that fails while it logs is left out from then on."""

    def __init__(
        self,
        names: Iterable[str],
        run_folder: Path,
        *,
        start: int,
        recipe: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        """Open the trackers; from step `start` on, where a run resumes.

        Raise MucoError if a tracker's package is missing or it cannot start.
        """
        names = tuple(names)
        if missing := missing_trackers(names):
            raise MucoError("\n".join(f"{key}: {problem}" for key, problem in missing.items()))
        self._warn = warn
        self._ids = _read_ids(run_folder)
        self._trackers: dict[str, GeneralTracker] = {}
        for name in names:
            try:
                self._trackers[name] = self._open(name, run_folder, start, f"{recipe.get('name')}")
                if name != "tensorboard":  # it writes settings as a run of its own
                    self._trackers[name].store_init_configuration(dict(_flat(recipe)))
            except MucoError:
                raise
            except Exception as error:  # whatever a tracker's package raises
                self.close()
                raise MucoError(
                    f"train.trackers: {name} cannot start: {error}\nSet it up, or leave it out."
                ) from error
        if self._ids:
            write_text(run_folder / TRACKERS_FILE, json.dumps(self._ids) + "\n")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures by name after a step."""
        values = {re.sub(r"[^\w\-. :/]", "", name): value for name, value in figures.items()}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(values, step=step)
            except Exception as error:  # a network is down, say; training goes on
                del self._trackers[name]
                self._warn(f"warning: {name} fails and gets no more figures: {error}")

    def close(self) -> None:
        """Close the trackers."""
        for name, tracker in self._trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                self._warn(f"warning: {name} cannot be closed: {error}")

    def _open(self, name: str, run_folder: Path, start: int, run_name: str) -> GeneralTracker:
        from accelerate import tracking

        if name == "tensorboard":
            refuse_links(run_folder / "tensorboard", run_folder)
            board = tracking.TensorBoardTracker("tensorboard", run_folder, purge_step=start + 1)
            return _started(board)
        if name == "mlflow":
            flow = _started(tracking.MLflowTracker(_PROJECT, run_name=run_name, run_id=self._ids.get(name)))
            self._ids[name] = flow.tracker.info.run_id
            return flow
        self._ids.setdefault(name, f"{run_name}-{uuid4().hex[:8]}")
        if name == "trackio":
            return _started(tracking.TrackioTracker(_PROJECT, name=self._ids[name], resume="allow"))
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        options = {"id": self._ids[name], "name": run_name, "dir": f"{run_folder}", "resume": "allow"}
        return _started(tracking.WandBTracker(project, **options))


def _started(tracker: Any) -> Any:
    tracker.start()
    return tracker


def _read_ids(run_folder: Path) -> dict[str, str]:
    """Return the ids of the run that is resumed; none if it had no such trackers."""
    try:
        values = parse_json((run_folder / TRACKERS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a recipe by their dotted keys; lists as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            is_plain = value is None or isinstance(value, bool | int | float | str)
            yield f"{prefix}{key}", value if is_plain else json.dumps(value)

"""A run's folder: what is in it, whose it is, and whether the run in it is done."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from muco.config.recipe import Evaluation, Recipe
from muco.config.yaml_lines import read_yaml
from muco.core.component_ref import is_mapping
from muco.core.errors import MucoError
from muco.io.atomic import remove_folder, write_text
from muco.io.json_text import parse_json

R = TypeVar("R")

Only = Literal["train", "evaluate"]
"""One part of a run."""

_REPORTED = (
    "muco",
    "torch",
    "transformers",
    "open-clip-torch",
    "timm",
    "accelerate",
    "tokenizers",
    "numpy",
    "pillow",
    "webdataset",
)
_FREE_ON_RESUME = (
    "train.num_steps",
    "train.num_workers",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "evaluate",
)
"""Keys that may differ between a run and its resumption: the steps already done do not depend on them,
but for `train.num_steps` under a cosine schedule."""


@dataclass(frozen=True)
class Summary:
    """summary.json: the result of a run that ended."""

    name: str
    steps: int
    samples_seen: int
    pairs_seen: int
    """Query turns trained on, repeats counted."""
    train_seconds: FiniteFloat
    """In training steps, over all resumptions."""
    wall_seconds: FiniteFloat
    """Of the command that wrote the file."""
    metrics: dict[str, float]
    """Averages and tasks of every suite by name, `scenes/mean`."""


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>`."""

    path: Path

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model"

    @property
    def eval(self) -> Path:
        """One result a suite."""
        return self.path / "eval"

    def summary(self) -> Summary | None:
        """Return the result of a run that ended; None for one that did not."""
        path = self.path / "summary.json"
        values = _mapping(path, parse_json)
        return None if values is None else validate_record(path, Summary, values)

    def environment(self) -> dict[str, Any] | None:
        """Return what the run ran on."""
        return _mapping(self.path / "environment.json", parse_json)

    def recipe(self) -> dict[str, Any] | None:
        """Return the resolved recipe of the run in the folder; None where there is none."""
        return _yaml_mapping(self.path / "recipe.yaml")

    def data(self) -> dict[str, Any] | None:
        """Return the fingerprint of each data set that the run trained on."""
        return _mapping(self.path / "data.json", json.loads)

    def write_data(self, fingerprints: dict[str, str]) -> None:
        """Write the fingerprint of each data set that the run trains on."""
        write_text(self.path / "data.json", json.dumps(fingerprints, indent=1) + "\n")

    def evaluation(self) -> dict[str, Any] | None:
        """Return what is evaluated in the folder, where its model comes from elsewhere."""
        return _yaml_mapping(self.path / "evaluation.yaml")

    def scored_weights(self) -> dict[str, str | None]:
        """Return, by suite, the hash of the weights that its result is of."""
        results = set(self.eval.glob("*.json")) - set(self.eval.glob("*.gallery.json"))
        found = {path.stem: (_mapping(path, parse_json) or {}).get("depends_on") for path in sorted(results)}
        return {suite: on.get("weights") if is_mapping(on) else None for suite, on in found.items()}

    def check_settings(self, label: str, settings: dict[str, Any]) -> None:
        """Raise MucoError if the result of this label is, or is to be, of other settings.

        Args:
            label: of a suite.
            settings: what decides its scores: `suite`, `packer` and so on, as in `depends_on` of a result.
        """
        stored = (_mapping(self.eval / f"{label}.json", parse_json) or {}).get("depends_on")
        if not is_mapping(stored):
            stored = self._planned(label)
        changed = differences({key: stored.get(key) for key in settings}, settings) if stored else []
        if changed:
            raise MucoError(
                f"{self.path} keeps the result {label!r} of other settings:\n  " + "\n  ".join(changed) + "\n"
                "Give this result a folder of its own with --to, or a name of its own with "
                "--set evaluate.suites.0.label=NAME."
            )

    def _planned(self, label: str) -> dict[str, Any]:
        """Return what the scores of a suite in the run's recipe will depend on; empty without that suite."""
        recipe = self.recipe() or {}
        settings = recipe.get("evaluate")
        if not is_mapping(settings):
            return {}
        for suite in settings.get("suites") or ():
            if is_mapping(suite) and suite.get("label", suite.get("name")) == label:
                return {**recipe, "suite": suite, "ties": settings.get("ties")}
        return {}

    def write_evaluation(self, asked: Evaluation) -> None:
        """Write what is evaluated in the folder, every default filled in."""
        text = yaml.safe_dump(asked.dump(), sort_keys=False, allow_unicode=True, width=100)
        write_text(self.path / "evaluation.yaml", text)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe; it runs again as it is."""
        text = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True, width=100)
        write_text(self.path / "recipe.yaml", text)

    def write_environment(self) -> None:
        """Write versions, device, threads, git commit and command."""
        import torch

        values = {
            "versions": versions(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "num_threads": torch.get_num_threads(),
            "git_commit": git_commit(),
            "command": sys.argv,
        }
        write_text(self.path / "environment.json", json.dumps(values, indent=1) + "\n")

    def write_summary(self, summary: Summary) -> None:
        """Write the run's result; from here on the run counts as ended."""
        write_text(self.path / "summary.json", json.dumps(asdict(summary), indent=1) + "\n")

    def check(
        self, recipe: Recipe, data: dict[str, str], *, resume: bool, only: Only | None
    ) -> Summary | None:
        """Return the summary of a finished run of the recipe; None where the run can start or go on.

        Args:
            recipe: of the run that is to start.
            data: fingerprints of its training data, by data set; those that are not known are left out.
            resume: whether it goes on from the last checkpoint.
            only: the part of the run that is to be done.

        Raises:
            MucoError: the folder holds another run, other files, a run on other data, or an unfinished one
                that is not resumed; or there is none to evaluate.
        """
        old = self.recipe()
        if old is None:
            if only == "evaluate":
                raise MucoError(f"{self.path}: no run to evaluate; train it first, without --only evaluate")
            if self._has_files():
                raise MucoError(
                    f"{self.path} holds files, but no recipe.yaml: it is not known which run they are of. "
                    "Move them away, or give this run another `--set name=...`."
                )
            return None
        check_same_recipe(f"{self.path}", old, recipe)
        if only != "evaluate":
            check_same_data(f"{self.path}", self.data() or {}, data)
        same = not differences(old, recipe.dump())
        if same and only is None and (summary := self.summary()) and self._is_done(summary, recipe):
            return summary
        if not resume and only != "evaluate":
            raise MucoError(
                f"{self.path} holds an unfinished run of this recipe, or one with other suites. "
                "Go on with --resume, or start over with --fresh."
            )
        return None

    def clear(self) -> None:
        """Remove the run in the folder; a folder that holds no run is left alone.

        Raises:
            MucoError: the folder holds files, and no recipe.yaml among them.
        """
        if not self.path.exists():
            return
        if self.recipe() is None and self._has_files():
            raise MucoError(f"{self.path} holds no muco run; --fresh will not remove it. Move it away.")
        target = self.path.resolve()  # the run may be on another disk, behind a link
        remove_folder(target)
        if self.path.is_symlink():
            target.mkdir()

    def _has_files(self) -> bool:
        """Return whether files are in the folder; hidden ones, as a killed process leaves, do not count."""
        return self.path.exists() and any(path.name[0] != "." for path in self.path.iterdir())

    def _is_done(self, summary: Summary, recipe: Recipe) -> bool:
        """Return whether the model is there, and all steps and suites of a recipe are in a summary."""
        return (
            (self.model / "muco.json").is_file()
            and summary.steps >= recipe.train.num_steps
            and all(
                any(name.startswith(f"{suite.label}/mean") for name in summary.metrics)
                for suite in recipe.evaluate.suites
            )
        )


def with_scores(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    """Return `new` metrics, and the old ones of suites that have none among them."""
    suites = {name.partition("/")[0] for name in new}
    return {name: value for name, value in old.items() if name.partition("/")[0] not in suites} | new


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return `key: old -> new` for each leaf that differs between two resolved recipes."""
    told = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            told += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            told.append(f"{prefix}{key}: {before} -> {after}")
    return told


def _blocks_resume(difference: str, recipe: Recipe) -> bool:
    """Return whether the steps already done depend on a difference between two recipes."""
    if difference.startswith("train.num_steps") and recipe.train.schedule == "cosine":
        return True
    return not difference.startswith(_FREE_ON_RESUME)


def check_same_recipe(title: str, old: dict[str, Any], recipe: Recipe) -> None:
    """Raise MucoError if the steps already done depend on a difference between two recipes.

    Args:
        title: begins the message.
        old: the resolved recipe of the steps done.
        recipe: of the run that is to go on.
    """
    blocking = [each for each in differences(old, recipe.dump()) if _blocks_resume(each, recipe)]
    if blocking:
        raise MucoError(
            f"{title} holds another run. Its recipe differs in\n  "
            + "\n  ".join(blocking[:12])
            + "\nGive this run another `--set name=...`, or remove the old one with --fresh."
        )


def check_same_data(title: str, old: dict[str, str], new: dict[str, str]) -> None:
    """Raise MucoError if the fingerprint of a data set changed; unknown ones are not compared.

    Args:
        title: begins the message.
        old: fingerprints by data set, when the steps were done.
        new: fingerprints by data set now.
    """
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    if changed:
        raise MucoError(
            f"{title} was trained on other data: {', '.join(f'data.{name}' for name in changed)} changed "
            "since then. Bring the old data back, give this run another `--set name=...`, or start over "
            "with --fresh."
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the working folder, with `-dirty` where it has changes."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def validate_record(path: Path, record: type[R], values: Any) -> R:
    """Return the record that a file of the folder holds; keys that the record does not have are ignored.

    Raises:
        MucoError: a field is missing or has another type.
    """
    try:
        return TypeAdapter(record).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise MucoError(
            f"{path}: not what this version of muco writes: {where}: {first['msg']}\n"
            "Make the file again, or read it with the version that wrote it (environment.json)."
        ) from None


def _yaml_mapping(path: Path) -> dict[str, Any] | None:
    return _mapping(path, lambda text: read_yaml(f"{path}", text)[0])


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return what a file of the folder holds; None where it is not there."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MucoError(f"{path}: cannot be read: {error}") from error
    if not is_mapping(found):
        raise MucoError(f"{path}: must hold a mapping; it is not what a run writes there")
    return found

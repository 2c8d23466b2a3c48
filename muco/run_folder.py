"""A run's folder: what is in it, whose it is, and whether the run in it is done."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from muco.config.recipe import Recipe
from muco.config.yaml_lines import read_yaml
from muco.core.component_ref import is_mapping
from muco.core.errors import MucoError
from muco.io.atomic import remove_folder, write_text
from muco.io.untrusted import parse_json, read_file

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
    "train.gather_weights",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.blind_probe",
    "train.validate_every",
    "train.validate_suites",
    "train.validate_queries",
    "train.keep_best",
    "train.early_stopping",
    "train.trackers",
    "evaluate",
)
"""Keys that may differ between a run and its resumption: the steps already done do not depend on them,
but for `train.num_steps` under a cosine schedule."""


MAX_THREADS = 1024
"""More than that, only a damaged environment.json names."""


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
    model_step: int | None = None
    """The step of the run's model; before `steps` with `train.keep_best`."""
    stopped_early: bool = False
    """Whether `train.early_stopping` ended the training before `train.num_steps`."""


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

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the mapping in a JSON or YAML file, None without it; raise MucoError if it is broken."""
        path = self.path / name
        try:
            text = read_file(path).decode()
            values = read_yaml(f"{path}", text)[0] if path.suffix == ".yaml" else parse_json(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise MucoError(f"{path}: cannot be read: {error}") from error
        if not is_mapping(values):
            raise MucoError(f"{path}: must hold a mapping; it is not what a run writes there")
        return values

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Write a mapping to `name`, a JSON or YAML file of the folder."""
        if name.endswith(".yaml"):
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
        else:
            text = json.dumps(values, indent=1) + "\n"
        write_text(self.path / name, text)

    def num_threads(self) -> int | None:
        """Return how many threads the run computes with, None before it began; raise MucoError if damaged."""
        number = (self.read("environment.json") or {}).get("num_threads")
        if number is not None and not (type(number) is int and 0 < number <= MAX_THREADS):
            raise MucoError(
                f"{self.path}/environment.json: num_threads is {number!r}, not 1 to {MAX_THREADS}"
            )
        return number

    def recipe(self) -> dict[str, Any] | None:
        """Return the resolved recipe of the run in the folder; None if there is none."""
        return self.read("recipe.yaml")

    def summary(self) -> Summary | None:
        """Return the result of a run that ended; None for one that did not."""
        values = self.read("summary.json")
        return None if values is None else validate_record(self.path / "summary.json", Summary, values)

    def write_summary(self, summary: Summary) -> None:
        """Write the run's result; from here on the run counts as ended."""
        self.write("summary.json", asdict(summary))

    def scored_weights(self) -> dict[str, str | None]:
        """Return, by suite, the hash of the weights that its result is of."""
        results = set(self.eval.glob("*.json")) - set(self.eval.glob("*.gallery.json"))
        stored = {path.stem: self._depends_on(path.stem) for path in sorted(results)}
        return {suite: on.get("weights") if is_mapping(on) else None for suite, on in stored.items()}

    def check_settings(self, label: str, settings: dict[str, Any]) -> None:
        """Raise MucoError if a suite's result has, or will have, other settings in its `depends_on`."""
        stored = self._depends_on(label)
        stored = stored if is_mapping(stored) else self._planned(label)
        changed = differences({key: stored.get(key) for key in settings}, settings) if stored else []
        if changed:
            raise MucoError(
                f"{self.path} keeps the result {label!r} of other settings:\n  " + "\n  ".join(changed) + "\n"
                "Give this result a folder of its own with --to, or a name of its own with "
                "--set evaluate.suites.0.label=NAME."
            )

    def _depends_on(self, label: str) -> Any:
        return (self.read(f"eval/{label}.json") or {}).get("depends_on")

    def _planned(self, label: str) -> dict[str, Any]:
        """Return what the scores of a suite in the run's recipe will depend on; empty without that suite."""
        recipe = self.recipe() or {}
        settings = recipe.get("evaluate")
        settings = settings if is_mapping(settings) else {}
        for suite in settings.get("suites") or ():
            if is_mapping(suite) and suite.get("label", suite.get("name")) == label:
                return {**recipe, "suite": suite, "ties": settings.get("ties")}
        return {}

    def check(
        self, recipe: Recipe, data: dict[str, str], *, resume: bool, only: Only | None
    ) -> Summary | None:
        """Return the summary of a finished run of the recipe; None if the run can start or go on.

        `data` has the known fingerprints of the training data. Raise MucoError if the folder holds another
        run, other files, other data, an unfinished run that is not resumed, or no run to evaluate.
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
            check_same_data(f"{self.path}", self.read("data.json") or {}, data)
        changes = differences(old, recipe.dump())
        if not changes and only is None and (summary := self.summary()) and self.is_done(summary, recipe):
            return summary
        if not resume and only != "evaluate":
            what = "this recipe's run with other settings" if changes else "an unfinished run of this recipe"
            raise MucoError(
                "\n  ".join([f"{self.path} holds {what}", *changes])
                + "\nGo on with --resume, or start over with --fresh."
            )
        return None

    def clear(self) -> None:
        """Remove the run in the folder; raise MucoError if it holds files and no recipe.yaml."""
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

    def is_done(self, summary: Summary, recipe: Recipe) -> bool:
        """Return whether the model is there, and all steps and suites of a recipe are in a summary."""
        return (
            (self.model / "muco.json").is_file()
            and (summary.steps >= recipe.train.num_steps or summary.stopped_early)
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
    changes: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return changes


def _blocks_resume(difference: str, recipe: Recipe) -> bool:
    """Return whether the steps already done depend on a difference between two recipes."""
    if difference.startswith("train.num_steps") and recipe.train.schedule == "cosine":
        return True
    return not difference.startswith(_FREE_ON_RESUME)


def check_same_recipe(title: str, old: dict[str, Any], recipe: Recipe) -> None:
    """Raise MucoError if steps done by the resolved recipe `old` do not count as steps of `recipe`."""
    blocking = [each for each in differences(old, recipe.dump()) if _blocks_resume(each, recipe)]
    if blocking:
        raise MucoError(
            f"{title} holds another run. Its recipe differs in\n  "
            + "\n  ".join(blocking[:12])
            + "\nGive this run another `--set name=...`, or remove the old one with --fresh."
        )


def check_same_data(title: str, old: dict[str, str], new: dict[str, str]) -> None:
    """Raise MucoError if the fingerprint of a data set changed; unknown ones are not compared."""
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    if changed:
        raise MucoError(
            f"{title} was trained on other data: {', '.join(f'data.{name}' for name in changed)} changed "
            "since then. Bring the old data back, give this run another `--set name=...`, or start over "
            "with --fresh."
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    result = {"python": platform.python_version()}
    for name in _REPORTED:
        with suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


def environment() -> dict[str, Any]:
    """Return versions, device, threads, git commit and command of this process."""
    import torch

    return {
        "versions": versions(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "num_threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    """Return the commit of the working folder, with `-dirty` if it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def validate_record(path: Path, record: type[R], values: Any) -> R:
    """Return the record in a file, unknown keys ignored; raise MucoError if a field is wrong."""
    try:
        return TypeAdapter(record).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise MucoError(
            f"{path}: not what this version of muco writes: {where}: {first['msg']}\n"
            "Make the file again, or read it with the version that wrote it (environment.json)."
        ) from None

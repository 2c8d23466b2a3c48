"""The log of training: train.jsonl, validation.jsonl, trackers, and a bar or lines on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from muco.console import print_record
from muco.io.atomic import open_append, write_bytes
from muco.io.untrusted import parse_json
from muco.training.early_stopping import Best
from muco.training.trackers import Trackers

LOG_FILE = "train.jsonl"
UNREADABLE_FILE = "unreadable.jsonl"
VALIDATION_FILE = "validation.jsonl"


class LoggedStep(BaseModel):
    """A line of train.jsonl; means are over the steps since the line before.

    Keys that are not named here are other rates that the loss returns.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    step: int
    epoch: int
    loss: float
    """Mean of a step's loss, in nats a query turn."""
    lr: float
    grad_norm: float
    """Mean norm of the gradient before it is scaled down."""
    pairs_per_second: float
    samples_per_second: float
    tokens: int
    """Language-model tokens a step, padding left out."""
    padding_share: float
    in_batch_accuracy: float | None = None
    """Share of query turns that rank a positive above all their negatives in the batch; None for a loss that
    does not return it."""
    wait_share: float
    """Share of the time that training waited for data."""
    model_flops: int | None = None
    """FLOPs of a step, forward and backward, without what is computed again; None if the backbone does not
    say what it computes."""
    flops_per_second: float | None = None
    """`model_flops` over the time of a step."""
    utilization: float | None = None
    """`flops_per_second` as a share of the devices' peak, where the peak is known."""
    counts: dict[str, float]
    """What the loss counts, a step on average."""


@dataclass(frozen=True)
class LoggedValidation:
    """A line of validation.jsonl: the scores of the weights after a step, by name as in summary.json."""

    step: int
    seconds: float
    averages: dict[str, float]
    tasks: dict[str, float]


@dataclass(frozen=True)
class UnreadableSample:
    """A line of unreadable.jsonl: a sample that training left out."""

    step: int
    sample: str
    reason: str


def append_unreadable(run_folder: Path, samples: Iterable[UnreadableSample]) -> None:
    """Add a line to unreadable.jsonl for each sample; raise DataError if the file is a symbolic link."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in samples)
    with open_append(run_folder / UNREADABLE_FILE) as file:
        file.write(lines.encode())


def cut_lines(path: Path, step: int) -> None:
    """Remove the lines after `step` from a JSONL file: a killed run may have logged past its checkpoint."""
    if not path.is_file():
        return
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            if parse_json(line.decode())["step"] <= step:
                lines.append(line + b"\n")
        except (ValueError, KeyError, TypeError):  # the run was killed while it wrote this line
            break
    write_bytes(path, b"".join(lines))


class TrainLog:
    """The log of the main process, from step `start` on. A line is on disk before the next step begins."""

    def __init__(
        self,
        run_folder: Path,
        *,
        start: int,
        num_steps: int,
        console: Console,
        trackers: Sequence[str] = ("tensorboard",),
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = run_folder
        for name in (LOG_FILE, VALIDATION_FILE):
            cut_lines(run_folder / name, start)
        with ExitStack() as opened:
            self._file = opened.enter_context(open_append(run_folder / LOG_FILE))
            warn = partial(console.print, style="yellow")
            self._trackers = Trackers(trackers, run_folder, start=start, recipe=recipe or {}, warn=warn)
            opened.pop_all()  # all are open: `__exit__` closes them
        self._console = console
        self._pace = Pace(start, num_steps)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=start, note="")

    def __enter__(self) -> TrainLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._file.close()
        self._trackers.close()

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        self._bar.update(self._task, completed=step)

    def write(self, line: LoggedStep) -> None:
        """Append a line to train.jsonl, pass its figures to the trackers, and print it."""
        values = line.model_dump(exclude_none=True)
        self._file.write((json.dumps(values) + "\n").encode())
        self._file.flush()
        figures = {f"train/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        del figures["train/step"]
        figures |= {f"counts/{name}": number for name, number in line.counts.items()}
        self._trackers.log(figures, line.step)
        self._bar.update(self._task, note=f"loss {line.loss:.3f}  {line.pairs_per_second:,.0f} pairs/s")
        if not self._console.is_terminal:
            times = self._pace.seconds(line.step)
            print_record(self._console, "train", values | times, _step_in_words(line, self._pace))

    def write_validation(self, line: LoggedValidation, best: Best | None) -> None:
        """Append a line to validation.jsonl, pass its scores to the trackers, and print it."""
        with open_append(self._folder / VALIDATION_FILE) as file:
            file.write((json.dumps(asdict(line)) + "\n").encode())
        figures = {f"validation/{name}": score for name, score in (line.averages | line.tasks).items()}
        self._trackers.log(figures, line.step)
        means = [f"{name} {score:.3f}" for name, score in line.averages.items() if "/mean" in name]
        text = f"validation after step {line.step:,}: {', '.join(means)}"
        text += f"; best {best.words}" if best else ""
        print_record(self._console, "validation", asdict(line), text)


@dataclass
class Pace:
    """How long this command has trained, and how long it will at this pace, validations included."""

    start: int
    """The step that it began after."""
    num_steps: int
    began: float = field(default_factory=time.monotonic)

    def seconds(self, step: int) -> dict[str, float]:
        """Return the seconds so far and left, after a step."""
        so_far = time.monotonic() - self.began
        left = so_far / max(step - self.start, 1) * (self.num_steps - step)
        return {"seconds": round(so_far, 1), "seconds_left": round(left, 1)}


def _step_in_words(line: LoggedStep, pace: Pace) -> str:
    so_far, left = (timedelta(seconds=round(each)) for each in pace.seconds(line.step).values())
    accuracy = [] if line.in_batch_accuracy is None else [f"in-batch accuracy {line.in_batch_accuracy:.3f}"]
    return "  ".join(
        [
            f"step {line.step:,}/{pace.num_steps:,}",
            f"loss {line.loss:.3f}",
            *accuracy,
            f"lr {line.lr:.2e}",
            f"{line.pairs_per_second:,.0f} pairs/s",
            f"wait {line.wait_share:.0%}",
            f"{so_far} so far, {left} left",
        ]
    )

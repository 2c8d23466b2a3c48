"""The log of training: train.jsonl, TensorBoard, and a bar or lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from muco.io.atomic import open_append, refuse_links, write_text
from muco.io.json_text import parse_json

LOG_FILE = "train.jsonl"
UNREADABLE_FILE = "unreadable.jsonl"


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
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if parse_json(line)["step"] <= step:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the run was killed while it wrote this line
            break
    write_text(path, "".join(lines))


class TrainLog:
    """The log of the main process, from step `start` on. A line is on disk before the next step begins."""

    def __init__(self, run_folder: Path, *, start: int, num_steps: int, console: Console) -> None:
        from torch.utils.tensorboard import SummaryWriter

        board = run_folder / "tensorboard"
        refuse_links(board, run_folder)
        cut_lines(run_folder / LOG_FILE, start)
        self._file = open_append(run_folder / LOG_FILE)
        self._board = SummaryWriter(str(board), purge_step=start + 1)
        self._console = console
        self._num_steps = num_steps
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
        self._board.close()

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        self._bar.update(self._task, completed=step)

    def write(self, line: LoggedStep) -> None:
        """Append a line to train.jsonl and to TensorBoard, and print it."""
        values = line.model_dump(exclude_none=True)
        self._file.write((json.dumps(values) + "\n").encode())
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(f"train/{name}", value, line.step)
        for name, value in line.counts.items():
            self._board.add_scalar(f"counts/{name}", value, line.step)
        note = f"loss {line.loss:.3f}  {line.pairs_per_second:,.0f} pairs/s"
        self._bar.update(self._task, note=note)
        if not self._console.is_terminal:
            self._console.print(f"step {line.step}/{self._num_steps}  {note}")

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from muco.core.errors import DataError
from muco.training.log import LoggedStep, TrainLog, UnreadableSample, append_unreadable, cut_lines

LINE = LoggedStep(
    step=3, epoch=0, loss=1.5, lr=0.1, grad_norm=1, pairs_per_second=2, samples_per_second=1, tokens=5,
    padding_share=0, wait_share=0, counts={"negatives": 4},
)  # fmt: skip


def opened(folder, start: int) -> TrainLog:
    return TrainLog(folder, start=start, num_steps=4, console=Console(file=io.StringIO()))


def test_a_resumed_log_has_the_lines_up_to_its_start_and_the_new_ones(tmp_path):
    log = tmp_path / "train.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with opened(tmp_path, 2) as opened_log:
        opened_log.write(LINE)
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[2]["loss"] == 1.5


def test_a_killed_cut_leaves_the_log_whole(tmp_path, monkeypatch):
    log = tmp_path / "train.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n')

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cut_lines(log, 1)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("name", ["train.jsonl", "unreadable.jsonl", "tensorboard"])
def test_no_log_is_written_through_a_link(tmp_path, name):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    target = elsewhere if name == "tensorboard" else elsewhere / "bashrc"
    (run / name).symlink_to(target)
    if name == "unreadable.jsonl":
        with pytest.raises(DataError, match="symbolic link"):
            append_unreadable(run, [UnreadableSample(1, "a", "$(command)")])
    else:
        with pytest.raises(DataError, match="symbolic link"):
            opened(run, 0)
    assert list(elsewhere.iterdir()) == []

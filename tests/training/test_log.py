from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from muco.console import JsonTerminal, Terminal
from muco.core.errors import DataError
from muco.training.early_stopping import Best
from muco.training.log import (
    LoggedStep,
    LoggedValidation,
    TrainLog,
    UnreadableSample,
    append_unreadable,
    cut_lines,
)

LINE = LoggedStep(
    step=3, epoch=0, loss=1.5, lr=0.1, grad_norm=1, pairs_per_second=2, samples_per_second=1, tokens=5,
    padding_share=0, wait_share=0, counts={"negatives": 4},
)  # fmt: skip
VALIDATION = LoggedValidation(3, 0.5, {"scenes/mean": 0.4}, {"scenes/classification": 0.4})


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


def test_a_line_that_is_not_utf8_ends_the_log(tmp_path):
    log = tmp_path / "train.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 1, "x": "\xff"}\n{"step": 1}\n')
    cut_lines(log, 1)
    assert log.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl", "unreadable.jsonl", "tensorboard"])
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
        with pytest.raises(DataError, match="symbolic link"), opened(run, 0) as log:
            log.write_validation(VALIDATION, None)
    assert list(elsewhere.iterdir()) == []


def test_a_step_and_a_validation_have_one_line_each_without_a_terminal(tmp_path):
    console = Terminal(file=io.StringIO(), width=60)
    with TrainLog(tmp_path, start=2, num_steps=1200, console=console) as log:
        log.write(LINE.model_copy(update={"in_batch_accuracy": 0.25, "pairs_per_second": 1234.5}))
        log.write_validation(VALIDATION, Best("scenes/mean", 2, 0.5))
    first, second = console.file.getvalue().splitlines()
    assert re.fullmatch(
        r"step 3/1,200  loss 1\.500  in-batch accuracy 0\.250  lr 1\.00e-01  1,234 pairs/s  wait 0%  "
        r"0:00:0\d so far, [\d:]+ left",
        first,
    )
    assert second == "validation after step 3: scenes/mean 0.400; best scenes/mean 0.500 after step 2"


def test_json_lines_have_the_figures(tmp_path):
    file = io.StringIO()
    console = JsonTerminal(file=file)
    with TrainLog(tmp_path, start=2, num_steps=4, console=console) as log:
        log.write(LINE)
        log.write_validation(VALIDATION, None)
        console.print("a word\nof [more]")
    step, validation, message = map(json.loads, file.getvalue().splitlines())
    assert (step["event"], step["loss"], step["counts"]) == ("train", 1.5, {"negatives": 4})
    assert step["seconds_left"] >= 0
    assert (validation["event"], validation["averages"]) == ("validation", {"scenes/mean": 0.4})
    assert (message["event"], message["text"]) == ("message", "a word\nof [more]")


def test_a_resumed_log_cuts_the_validations_too(tmp_path):
    for start in (0, 2):
        with opened(tmp_path, start) as log:
            log.write_validation(replace(VALIDATION, step=start + 1), None)
            log.write_validation(replace(VALIDATION, step=start + 2), None)
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    with opened(tmp_path, 3):
        pass
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]

"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator

from muco import __version__
from muco.commands.main import main
from muco.config.load import find_recipe
from muco.data.shards.reader import ShardReader
from tests.helpers.outside_data import image_bytes, write_jsonl, write_zip

MUCO = [sys.executable, "-c", "from muco.commands.main import main; main()"]
MUCO_RUN = [sys.executable, "-c", "from muco.commands.main import run_main; run_main()"]


@pytest.fixture
def muco(capsys, tmp_path, monkeypatch):
    """Run `muco` in an empty folder; check its exit code and return what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")

    def muco(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        printed = capsys.readouterr()
        assert stop.value.code == code, printed
        return printed.out, printed.err

    return muco


@pytest.fixture
def refused(muco):
    """Return a function that runs a wrong command and returns its error: stderr only, exit code 2."""

    def refused(*arguments: str) -> str:
        out, err = muco(*arguments, code=2)
        assert out == ""
        return err

    return refused


def one_line(text: str) -> str:
    """Return what a message in a box of the terminal says."""
    return " ".join(text.replace("\u2502", " ").split())


def test_list_names_every_component_and_its_provider(muco, registry):
    out, err = muco("list")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["kind", "name", "provider"]
    assert rows[1:] == [[entry.kind, entry.name, *entry.provider.split()] for entry in registry]
    assert err == ""


def test_version_and_short_help_and_a_misspelt_command(muco, refused):
    assert muco("--version")[0] == f"muco {__version__}\n"
    for arguments in (["-h"], ["run", "-h"], ["data", "make", "-h"]):
        assert "Usage: muco" in muco(*arguments)[0]
    assert "Did you mean 'evaluate'" in one_line(refused("evalute"))


def test_json_lines_and_no_lines(muco, refused):
    check = ("run", "quickstart", "--check")
    line = json.loads(muco(*check, "--log-format", "json")[0])
    assert (line["event"], line["text"]) == (
        "message",
        "quickstart: no problems; the run's folder is runs/quickstart",
    )
    assert muco(*check, "--quiet") == ("", "")
    assert "is not one of 'text', 'json'" in one_line(refused(*check, "--log-format", "xml"))


def test_list_of_one_kind_names_only_this_kind(muco, registry):
    out, _ = muco("list", "packer")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["packer", entry.name] for entry in registry.entries("packer")
    ]


def test_list_of_no_kind_is_reported(refused):
    output = refused("list", "packr")
    assert "no kind named 'packr'. Did you mean 'packer'?" in output
    assert "source, sampler, packer, backbone, pooler, loss, suite" in output


def test_doctor_says_what_a_run_would_run_on(muco):
    out, _ = muco("doctor")
    found = {line.split()[0] for line in out.splitlines()}
    assert found >= {"python", "muco", "torch", "transformers", "device", "precision", "attention", "cache"}
    assert "GiB" in out


def test_schema_is_json_schema(muco):
    out, _ = muco("schema")
    Draft202012Validator.check_schema(json.loads(out))


def test_the_schema_of_generate_accepts_the_shipped_file(muco):
    shipped = yaml.safe_load(find_recipe("generate/m3t").read_text())
    schema = json.loads(muco("schema", "generate")[0])
    Draft202012Validator(schema).validate(shipped)
    shipped["kinds"]["creative"]["max_word"] = 3
    assert not Draft202012Validator(schema).is_valid(shipped)


def test_make_scenes_writes_shards(muco, tmp_path):
    out, _ = muco(
        "data", "make", "scenes", "--to", "data/scenes", "--set", "num_samples=20", "--set", "seed=3"
    )
    assert "20 samples in data/scenes" in out
    reader = ShardReader(tmp_path / "data/scenes")
    assert len(reader) == 20
    assert reader.index.metadata["settings"]["seed"] == 3
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["scenes"]


def test_make_does_not_change_a_folder_that_exists(refused, tmp_path):
    (tmp_path / "here").mkdir()
    assert "here exists; name a folder to be made" in refused("data", "make", "scenes", "--to", "here")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_sample=20", "num_sample: no such key. Did you mean 'num_samples'?"),
        ("num_samples=0", "num_samples: must be greater than 0, not 0"),
        ("num_samples", "--set num_samples: write KEY=VALUE"),
        ("num_samples=[", "--set num_samples=[: the value is not YAML; quote it"),
    ],
)
def test_a_setting_that_a_source_does_not_take_is_reported(refused, tmp_path, setting, message):
    assert message in refused("data", "make", "scenes", "--to", "new", "--set", setting)
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_folder_that_is_no_run_is_reported(refused, tmp_path):
    output = refused("report", str(tmp_path))
    assert f"{tmp_path}: not a run folder" in output
    assert "muco-run RECIPE" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["list", "--bogus"], "No such option: --bogus"),
        (["list", "packer", "more"], "unexpected extra argument"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "quickstart", "--set"], "Option '--set' requires an argument"),
        (["data", "make", "scenes"], "Missing option '--to'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_reported(refused, arguments, message):
    assert message.casefold() in refused(*arguments).casefold()


def test_a_wrong_command_is_an_error_that_shows_its_usage(refused):
    output = refused("list", "--bogus")
    assert "Usage: muco list" in output
    assert "muco list --help" in output


@pytest.mark.parametrize("arguments", [[], ["data"], ["data", "make"]], ids=" ".join)
def test_no_command_shows_what_there_is(muco, arguments):
    out, err = muco(*arguments, code=2)
    assert "Usage: muco" in out + err


def test_help_of_a_run_names_its_options(muco):
    out, _ = muco("run", "--help")
    assert all(option in out for option in ("--set", "--only", "--resume", "--fresh", "--check"))


def test_check_says_that_a_recipe_is_fine_and_runs_nothing(muco, tmp_path):
    out, _ = muco("run", "quickstart", "--check", "--set", "name=mine")
    assert out == "quickstart: no problems; the run's folder is runs/mine\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "Did you mean 'recipes/quickstart.yaml'?"),
        (["quickstart", "--only", "bogus"], "'bogus' is not one of 'train', 'evaluate'"),
        (
            ["quickstart", "--resume", "--fresh"],
            "--resume continues a run and --fresh starts again: choose one",
        ),
        (["quickstart", "--only", "evaluate"], "runs/quickstart: no run to evaluate"),
        (
            ["quickstart", "--set", "train.num_step=1"],
            "train.num_step: no such key. Did you mean 'num_steps'?",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_be_done_is_reported_and_leaves_nothing(refused, tmp_path, arguments, message):
    assert message in one_line(refused("run", *arguments))
    assert list(tmp_path.iterdir()) == []


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "quickstart", "--resume"),
        ("report", "runs/quickstart"),
        ("evaluate", "runs/quickstart", "--suite", "scenes"),
        ("mine", "runs/quickstart"),
        ("export", "runs/quickstart", "out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_strangers_run_with_a_recipe_that_expands_is_refused(refused, tmp_path, arguments):
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/recipe.yaml").write_text(BOMB)
    assert "recipe.yaml: 1 problem\n  nested too deeply, or too large" in refused(*arguments)


def test_fresh_does_not_change_a_folder_without_a_run(refused, tmp_path):
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/thesis.tex").write_text("")
    assert "holds no muco run; --fresh will not remove it" in refused("run", "quickstart", "--fresh")
    assert (tmp_path / "runs/quickstart/thesis.tex").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_reported_in_words(refused, monkeypatch, code):
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "runs/quickstart")

    monkeypatch.setattr("muco.io.atomic.os.open", full)
    message = refused("run", "quickstart", "--only", "train")
    assert message == f"runs/quickstart: cannot be read or written: {os.strerror(code)}\n"


def test_a_device_without_memory_is_reported_with_what_helps(refused, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("muco.commands.run.Ranks.join", full)
    message = refused("run", "quickstart")
    assert message.startswith("CUDA out of memory.\nThe device has too little memory.")
    assert "train.grad_cache=true" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "quickstart"],
        ["evaluate", "qwen_vl", "--suite", "scenes", "--to", "runs/x"],
        ["mine", "qwen_vl", "--shards", "runs/x", "--to", "y"],
        ["data", "make", "scenes", "--to", "runs/x"],
        ["report", "runs"],
        ["report", "x" * 300],
        ["report", "loop"],
    ],
)
def test_a_file_in_place_of_a_folder_is_reported_in_words(refused, tmp_path, arguments):
    (tmp_path / "runs").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    assert "Traceback" not in refused(*arguments)
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_home_folder_that_is_not_known_is_reported_in_words(refused, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("pwd.getpwnam", {}.__getitem__)
    for path in ("~/data", "~nobody_here/data"):
        message = refused("run", "quickstart", "--set", "data.turns.source=null", "--set",
                          f"data.turns.shards={path}")  # fmt: skip
        assert f"{path} is not there" in message


def test_a_home_folder_that_cannot_be_written_is_told_in_words(muco, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cache").touch()  # so that root cannot write there either
    home.chmod(0o555)
    monkeypatch.setenv("HOME", str(home))
    for name in ("MUCO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pictures").mkdir()
    write_zip(tmp_path / "pictures/a.zip", {"1.png": image_bytes(1)})
    write_jsonl(tmp_path / "pictures/t.jsonl", [{"q": "x", "i": "1.png", "t": "y"}])
    columns = "columns={query_text: q, query_image: i, target_text: t}"
    for command in (
        ("run", "quickstart"),
        ("data", "prepare", "pairs", "--from", "pictures", "--to", "shards", "--set", columns),
    ):
        _, message = muco(*command, code=2)
        assert "cannot be written" in message
        assert "Set $MUCO_CACHE to another folder." in message
    assert not (tmp_path / "shards").exists()


def test_an_error_of_the_recipe_is_printed_once_a_machine(refused, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert refused("run", "quickstart", "--set", "loss.nam=x") == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "loss.nam" in refused("run", "quickstart", "--set", "loss.nam=x")


@pytest.mark.process
def test_an_unknown_component_is_reported_without_a_traceback(tmp_path):
    """The short form, in a process of its own."""
    (tmp_path / "r.yaml").write_text("name: x\nloss:\n  name: multi_turn_infonce\n")
    command = [*MUCO_RUN, "r.yaml", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("r.yaml: 7 problems\n")
    assert (
        "  line 3   loss.name: no loss named 'multi_turn_infonce'. Did you mean 'multiturn_infonce'?"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_ctrl_c_stops_at_once_and_leaves_no_shards_that_look_whole(tmp_path):
    command = [*MUCO, "data", "make", "scenes", "--to", "data/new", "--set", "num_samples=10000000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("data/.new.partial/shard-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [path.name for path in Path(tmp_path, "data").iterdir()] == [".new.partial"]


@pytest.mark.process
@pytest.mark.parametrize("command", [["list"], ["schema"]], ids=" ".join)
def test_a_reader_that_hangs_up_gets_no_traceback(command):
    """`muco schema | head -1`"""
    process = subprocess.Popen([*MUCO, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert err == ""

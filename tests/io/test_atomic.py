import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from muco.core.errors import DataError
from muco.io import atomic
from muco.io.atomic import (
    atomic_file,
    atomic_folder,
    atomic_path,
    open_append,
    remove_folder,
    write_bytes,
    write_text,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from muco.io.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half" * (file.write(b"begun") // 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert (partial.parent, partial.name[0]) == (tmp_path, ".")
    assert path.read_text() == "new"


def test_links_are_replaced_and_never_written_through(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    folder.mkdir()
    for name in ("summary.json", ".summary.json.partial", ".summary.json"):
        (folder / name).symlink_to(victim)
    write_text(folder / "summary.json", "new")
    assert victim.read_text() == "mine"
    assert not (folder / "summary.json").is_symlink()


def test_a_linked_folder_is_refused_where_the_caller_asks(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "eval").symlink_to(elsewhere)
    with pytest.raises(DataError, match="eval is a symbolic link"):
        write_text(run / "eval" / "deep" / "a.json", "{}", inside=run)
    assert list(elsewhere.iterdir()) == []
    (tmp_path / "link").symlink_to(run)
    write_text(tmp_path / "link" / "a.json", "{}", inside=tmp_path / "link")
    assert (run / "a.json").exists()


def test_a_file_that_grows_is_appended_to_and_never_through_a_link(tmp_path):
    for text in (b"1\n", b"2\n"):
        with open_append(tmp_path / "run" / "log", inside=tmp_path) as file:
            file.write(text)
    assert (tmp_path / "run" / "log").read_bytes() == b"1\n2\n"
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "folder").symlink_to(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder/log", "pipe", "run"):
        with pytest.raises(DataError, match="symbolic link"):
            open_append(tmp_path / name, inside=tmp_path)
    assert not (tmp_path / "target").exists()
    assert (tmp_path / "run" / "log").read_bytes() == b"1\n2\n"


def test_libraries_write_to_the_path_or_the_file(tmp_path):
    with atomic_path(tmp_path / "a.safetensors") as partial:
        save_file({"x": np.arange(3)}, partial)
    with atomic_file(tmp_path / "a.npy") as file:
        np.save(file, np.arange(4))
    with atomic_path(tmp_path / "a.sqlite") as partial:
        db = sqlite3.connect(partial)
        db.execute("CREATE TABLE t (x)")
        db.commit()
        db.close()
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3]
    assert sqlite3.connect(tmp_path / "a.sqlite").execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.process
def test_what_a_killed_process_left_is_removed_by_the_next_write_to_the_folder(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    # What SQLite puts beside a file, and a folder.
    (tmp_path / f"{left.name}-journal").touch()
    host, rest = left.name.removeprefix(".a.").split("-", 1)
    (tmp_path / f".folder.{host}-{rest}" / "model").mkdir(parents=True)
    write_text(tmp_path / "b", "")
    assert [each.name for each in tmp_path.iterdir()] == ["b"]


def test_what_another_host_writes_stays_for_a_day(tmp_path, monkeypatch):
    foreign = tmp_path / f".a.00000000-1-{'0' * 32}.partial"
    foreign.touch()
    write_text(tmp_path / "b", "")
    assert foreign.exists()
    monkeypatch.setattr(atomic, "_OTHER_HOST_SECONDS", -1)
    write_text(tmp_path / "b", "")
    assert not foreign.exists()


def test_files_of_running_processes_and_other_hidden_files_stay(tmp_path):
    (tmp_path / ".mine.partial").touch()
    with atomic_path(tmp_path / "a") as partial:
        write_text(tmp_path / "b", "")
        assert partial.exists()
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b", ".mine.partial"}


def test_a_file_older_than_the_process_that_has_its_id_now_is_removed(tmp_path, monkeypatch):
    with atomic_path(tmp_path / "a") as partial:
        # As if the file had last changed long before this process began.
        monkeypatch.setattr(atomic, "_CLOCK_SKEW_SECONDS", -(10**9))
        write_text(tmp_path / "b", "")
        assert not partial.exists()
        partial.touch()


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as partial:
        write_text(partial / "deep" / "a", "1")
        assert not path.exists()
    assert (path / "deep" / "a").read_text() == "1"
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as partial:
        write_text(partial / "b", "2")
    with pytest.raises(ValueError, match="stop"), atomic_folder(path, replace=True):
        raise ValueError("stop")
    assert (path / "deep" / "a").read_text() == "1"
    with atomic_folder(path, replace=True) as partial:
        write_text(partial / "b", "2")
    assert [each.name for each in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_removing_a_folder_removes_a_link_and_not_its_target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    remove_folder(tmp_path / "link")
    assert [each.name for each in tmp_path.iterdir()] == ["target"]
    remove_folder(tmp_path / "target")
    remove_folder(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_files_are_made_with_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a", "")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_safetensors_writes_is_readable_like_other_files(tmp_path):
    (tmp_path / "usual").touch()
    weights = {"a": np.zeros(2)}
    with atomic_path(tmp_path / "a.safetensors") as path:
        save_file(weights, path)
    with atomic_folder(tmp_path / "model") as folder:
        save_file(weights, folder / "b.safetensors")
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "usual").stat().st_mode}

"""Files that are not regular."""

from __future__ import annotations

import os

import pytest

from muco.core import MucoError
from muco.io.untrusted import read_file, refuse_special_files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def test_a_regular_file_and_a_link_to_it_are_read_and_others_are_not_waited_for(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "file") == read_file(tmp_path / "link") == b"x"
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="is no regular file"):
            read_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_a_folder_with_a_named_pipe_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("none")
    refuse_special_files(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MucoError, match="pipe is no regular file"):
        refuse_special_files(tmp_path)

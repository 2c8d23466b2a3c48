"""`muco run --flops` from settings alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from muco.commands.main import main

LIGHT = """
import sys
from muco.commands.main import main
try:
    main(["run", "m3t_qwen", "--flops"])
except SystemExit as stop:
    assert not stop.code
assert not {"transformers", "peft", "huggingface_hub"} & sys.modules.keys()
"""


def test_the_flops_of_a_public_model_need_neither_its_files_nor_transformers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "9,228,174,458,093,568" in lines["model FLOPs"]
    assert "images=1024" in done.stdout
    assert "huggingface.co/Qwen/Qwen2-VL-2B-Instruct" in done.stdout


def test_an_assumption_that_no_batch_has_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "quickstart", "--flops", "--assume", "turn=2"])
    assert stop.value.code == 2
    assert "Did you mean 'turns'?" in capsys.readouterr().err

"""Arguments of `muco.train` and `muco.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import muco


@pytest.mark.parametrize("value", [np.int64(3), object()])
def test_values_that_a_recipe_cannot_hold_are_named(value: Any):
    with pytest.raises(TypeError, match=f"train.num_steps is {type(value).__name__}: give a text, a number"):
        muco.train("quickstart", **{"train.num_steps": value})


def test_a_path_is_a_value(tmp_path):
    with pytest.raises(muco.MucoError, match=r"train\.num_steps: .*/nowhere"):
        muco.train("quickstart", folder=tmp_path / "run", **{"train.num_steps": Path("/nowhere")})


def test_resume_and_fresh_are_refused_together(tmp_path):
    with pytest.raises(ValueError, match="resume continues a run and fresh starts again"):
        muco.train("quickstart", folder=tmp_path / "run", resume=True, fresh=True)

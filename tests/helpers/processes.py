"""muco in processes of its own, as a user starts it: alone, or two by torchrun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MUCO = (sys.executable, "-m", "muco")
TORCHRUN = (*MUCO[:2], "torch.distributed.run", "--standalone", "--nproc-per-node=2", *MUCO[1:])


def start(folder: Path, *arguments: str, launcher: Sequence[str] = MUCO, **popen: Any) -> subprocess.Popen:
    """Start muco in a folder; what it says is kept for `communicate`."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *arguments], cwd=folder, **pipes, **popen)


def ended(process: subprocess.Popen, *, code: int = 0) -> str:
    """Wait for a process, check how it ended, and return all that it said, on one line."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in err, err
    return " ".join((out + err).split())

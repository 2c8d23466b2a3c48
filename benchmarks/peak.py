"""Measure the peak memory of Python code in a process of its own, on Linux."""

from __future__ import annotations

import subprocess
import sys


def resident_mib(before: str, measured: str) -> tuple[float, float]:
    """Return the peak resident memory in MiB after the code `before`, and after `measured`."""
    program = "\n".join(
        [
            "import re",
            # Not ru_maxrss, which a child inherits from its parent.
            "status = lambda: open('/proc/self/status').read()",
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) / 1024",
            before,
            "start = peak()",
            measured,
            "print(start, peak())",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    start, end = map(float, done.stdout.split()[-2:])
    return start, end

"""Peak memory of a piece of work, in a process of its own; Linux."""

from __future__ import annotations

import subprocess
import sys


def resident_mib(before: str, measured: str) -> tuple[float, float]:
    """Return the peak of resident memory in MiB after `before`, and after `measured` too; both are Python."""
    program = "\n".join(
        [
            "import re",
            # Not ru_maxrss: a child starts with its parent's.
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

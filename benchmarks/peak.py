"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def resident_mib(before: str, measured: str) -> tuple[float, float]:
    """Return the peak of resident memory in MiB after `before`, and after `measured` too; both are Python."""
    program = "\n".join(
        [
            "import resource",
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024",
            before,
            "start = peak()",
            measured,
            "print(start, peak())",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    start, end = map(float, done.stdout.split()[-2:])
    return start, end

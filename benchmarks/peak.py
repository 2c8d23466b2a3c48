"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def added_mib(before: str, measured: str) -> float:
    """Return by how many MiB the peak grows while `measured` runs, after `before`; both are Python."""
    program = "\n".join(
        [
            "import resource",
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss",
            before,
            "start = peak()",
            measured,
            "print((peak() - start) / 1024)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])

"""What muco would run on, found out rather than assumed."""

from __future__ import annotations

import shutil
from pathlib import Path

from muco.io.cache import cache_folder
from muco.run_folder import versions


def findings() -> dict[str, str]:
    """Return name and finding of each thing that decides how a run will go."""
    import torch

    found = {f"{name}": each for name, each in versions().items()}
    if torch.cuda.is_available():
        found["device"] = f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
        found["precision"] = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    else:
        found["device"] = f"cpu, {torch.get_num_threads()} threads"
        found["precision"] = "float32"
    half = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    on_gpu = "flash_varlen in 16 bits, else flex" if half else "flex"
    found["attention"] = on_gpu if torch.cuda.is_available() else "sdpa"
    found["cache"] = f"{cache_folder()}"
    for name, folder in (("free here", Path.cwd()), ("free in cache", cache_folder())):
        while not folder.exists():
            folder = folder.parent
        found[name] = f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"
    return found

"""`muco doctor`: what this machine offers for a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from muco.io.cache import cache_folder
from muco.run_folder import versions


def findings() -> dict[str, str]:
    """Return versions, device, precision, attention kernel, cache folder and free disk space, by name."""
    import torch

    result = dict(versions())
    if torch.cuda.is_available():
        result["device"] = f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
        result["precision"] = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        has_flash = torch.cuda.get_device_capability() >= (8, 0)
        result["attention"] = "flash_varlen in 16 bits, else flex" if has_flash else "flex"
    else:
        result["device"] = f"cpu, {torch.get_num_threads()} threads"
        result["precision"] = "float32"
        result["attention"] = "sdpa"
    result["cache"] = str(cache_folder())
    for name, folder in (("free here", Path.cwd()), ("free in cache", cache_folder())):
        while not folder.exists():
            folder = folder.parent
        result[name] = f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"
    return result

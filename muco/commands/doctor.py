"""`muco doctor`: what this machine offers for a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from muco.commands.packages import optional_packages, package_problems
from muco.core.errors import PluginError
from muco.core.printable import format_size
from muco.core.registry import default_registry
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
    result |= _packages_and_plugins()
    result["cache"] = str(cache_folder())
    for name, folder in (("free here", Path.cwd()), ("free in cache", cache_folder())):
        while not folder.exists():
            folder = folder.parent
        result[name] = format_size(shutil.disk_usage(folder).free)
    return result


def _packages_and_plugins() -> dict[str, str]:
    """Return what is wrong with packages, optional packages, and plugins with their components."""
    result = {**package_problems("muco"), **optional_packages("muco")}
    try:
        entries = [entry for entry in default_registry() if entry.provider.split()[0] != "muco"]
    except PluginError as error:
        return {**result, "plugins": str(error)}
    for provider in sorted({entry.provider for entry in entries}):
        names = [f"{entry.kind} {entry.name}" for entry in entries if entry.provider == provider]
        result[f"plugin {provider}"] = ", ".join(names)
        problems = package_problems(provider.split()[0])
        result |= {f"{name} (of {provider})": problem for name, problem in problems.items()}
    return result if entries else {**result, "plugins": "none"}

"""The shipped tables: sizes of public models, and peaks of devices."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def public_model(name: str) -> dict[str, Any] | None:
    """Return `source` and `sizes` of a model by its name on the hub; None if it is not in the table."""
    return _read("models.yaml").get(name)


def peak_flops(device: str) -> float | None:
    """Return the FLOP/s in bfloat16 of a device, by CUDA's name of it; None if it is not in the table."""
    return next((each["peak"] for each in _read("devices.yaml") if device in each["names"]), None)


def _read(name: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return yaml.load((files("muco.costs") / name).read_text(encoding="utf-8"), Loader=loader)

"""Making shards of a source by name, outside any recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from muco.core.errors import DataError, MucoError, did_you_mean
from muco.core.registry import default_registry
from muco.core.source import Source
from muco.data.cache import describe
from muco.data.write import write_shards


def make_shards(name: str, folder: Path, settings: Sequence[str], console: Console) -> int:
    """Write a source's samples to `folder`.

    Args:
        name: of a registered source.
        folder: must not exist.
        settings: `KEY=VALUE` each, of the source's Config.
        console: shows a bar.

    Returns:
        The number of samples.

    Raises:
        MucoError: a setting that does not exist or fit, a folder that does.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; name a folder to be made")
    cls = default_registry().component("source", name)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise MucoError(f"--set {setting}: write KEY=VALUE")
        try:
            values[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise MucoError(f"--set {setting}: the value is no YAML; quote it") from None
    try:
        config = cls.Config.model_validate(values)
    except ValidationError as error:
        known = list(cls.Config.model_fields)
        told = []
        for detail in error.errors():
            key = ".".join(map(str, detail["loc"]))
            near = did_you_mean(key, known) if detail["type"] == "extra_forbidden" else ""
            told.append(f"  {key}: {detail['msg']}.{near}")
        raise MucoError(f"source {name}:\n" + "\n".join(told)) from None
    source: Source = cast(Any, cls)(config)
    about = describe(name, config, source)
    samples = track(source.samples(), "drawing", total=len(source), console=console, transient=True,
                    disable=not console.is_terminal)  # fmt: skip
    write_shards(samples, folder, about=about)
    return len(source)

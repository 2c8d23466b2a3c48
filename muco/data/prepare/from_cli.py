"""Sources and their settings from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from muco.core.errors import MucoError, did_you_mean
from muco.core.registry import default_registry
from muco.core.source import Source
from muco.data.prepare.convert import Conversion, Layout


def conversion_of(
    name: str,
    folder: Path,
    settings: Sequence[str],
    *,
    path: Path | None = None,
    layout: Layout | None = None,
    max_skipped_share: float = 0.01,
) -> Conversion:
    """Return the conversion of a source into `folder`.

    Args:
        name: of a registered source.
        folder: of the shards.
        settings: `KEY=VALUE` each, of the source's Config; keys may be dotted.
        path: of an outside data set, for sources that read one.
        layout: of the shards.
        max_skipped_share: of records that make no sample.

    Raises:
        MucoError: no such source, or a setting that does not exist or fit.
    """
    try:
        cls = default_registry().component("source", name)
    except LookupError as error:
        raise MucoError(str(error.args[0])) from None
    values = _values(settings)
    if path is not None:
        if "path" not in cls.Config.model_fields:
            raise MucoError(f"source {name} reads no outside data; omit --from")
        values["path"] = str(path)
    try:
        config = cls.Config.model_validate(values)
    except ValidationError as error:
        raise MucoError(f"source {name}:\n{problems_of(error, list(cls.Config.model_fields))}") from None
    source: Source = cast(Any, cls)(config)
    return Conversion(name, config, source, folder, layout or Layout(), max_skipped_share)


def _values(settings: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals:
            raise MucoError(f"--set {setting}: write KEY=VALUE")
        *parents, last = dotted.split(".")
        parent = values
        for key in parents:
            parent = parent.setdefault(key, {})
            if not isinstance(parent, dict):
                raise MucoError(f"--set {setting}: {key} holds no keys")
        try:
            parent[last] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise MucoError(f"--set {setting}: the value is not YAML; quote it") from None
    return values


def problems_of(error: ValidationError, known: list[str]) -> str:
    """Return the problems of settings, one per line."""
    lines = []
    for detail in error.errors():
        key = ".".join(map(str, detail["loc"]))
        near = did_you_mean(key, known) if detail["type"] == "extra_forbidden" else ""
        hint = " It is given as --from." if detail["loc"] == ("path",) and detail["type"] == "missing" else ""
        message = detail["msg"].removeprefix("Value error, ")
        lines.append(f"  {f'{key}: ' if key else ''}{message}.{near}{hint}")
    return "\n".join(lines)

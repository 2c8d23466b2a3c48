"""Sources and their settings from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from muco.config.load import validate_settings
from muco.core.errors import MucoError, RecipeError
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
    """Return the conversion of a registered source into a folder of shards.

    Settings are `KEY=VALUE` of the source's Config; keys may be dotted. `path` is that of an outside data
    set, for sources that read one. Raise MucoError if there is no such source, or a setting does not exist
    or fit.
    """
    try:
        cls = default_registry().component("source", name)
    except LookupError as error:
        raise MucoError(str(error.args[0])) from None
    if path is not None and "path" not in cls.Config.model_fields:
        raise MucoError(f"source {name} reads no outside data; omit --from")
    values = {} if path is None else {"path": str(path)}
    try:
        config = validate_settings(cls.Config, values, settings, title=f"source {name}")
    except RecipeError as error:
        raise error.naming_option("path", "--from") from None
    source: Source = cast(Any, cls)(config)
    return Conversion(name, config, source, folder, layout or Layout(), max_skipped_share)

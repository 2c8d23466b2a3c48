"""Sources and their settings from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from muco.config.load import validate_settings
from muco.core.errors import MucoError
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
    fields = cls.Config.model_fields
    if path is not None and "path" not in fields:
        raise MucoError(f"source {name} reads no outside data; omit --from")
    if path is None and "path" in fields and fields["path"].is_required() and not _sets_path(settings):
        raise MucoError(f"source {name} reads outside data; say where they are with --from")
    values = {} if path is None else {"path": str(path)}
    config = validate_settings(cls.Config, values, settings, title=f"source {name}")
    source: Source = cast(Any, cls)(config)
    return Conversion(name, config, source, folder, layout or Layout(), max_skipped_share)


def _sets_path(settings: Sequence[str]) -> bool:
    return any(setting.startswith("path=") for setting in settings)

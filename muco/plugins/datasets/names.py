"""Settings that name some of a fixed list."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator, Field

from muco.core.errors import did_you_mean

Names = Annotated[tuple[str, ...], Field(min_length=1)]


def check_known(kind: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError, which lists `known`, if one of the names is not in it."""
    for name in names:
        if name not in known:
            near = did_you_mean(name, tuple(known))
            raise ValueError(f"no {kind} {name!r}.{near} Known: {', '.join(known)}")


def known(kind: str, known: Collection[str], *, twice: bool = False) -> AfterValidator:
    """Return a validator of a tuple of known names; a name given `twice` is used once, or an error."""

    def validate(names: Names) -> Names:
        check_known(kind, names, known)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated and not twice:
            raise ValueError(f"given twice: {', '.join(repeated)}")
        return tuple(dict.fromkeys(names))

    return AfterValidator(validate)

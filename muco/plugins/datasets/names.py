"""Settings that name some of a fixed list."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import AfterValidator

from muco.core.errors import did_you_mean

Names = tuple[str, ...]


def check_known(kind: str, names: Collection[str], known: Sequence[str]) -> None:
    """Raise ValueError, which lists `known`, if one of the names is not in it."""
    for name in names:
        if name not in known:
            raise ValueError(f"no {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")


def known(kind: str, known: Sequence[str]) -> AfterValidator:
    """Return a validator of a tuple of names: all are known, and each is kept once."""

    def validate(names: Names) -> Names:
        check_known(kind, names, known)
        return tuple(dict.fromkeys(names))

    return AfterValidator(validate)


def distinct(kind: str, known: Sequence[str]) -> AfterValidator:
    """Return a validator of a tuple of names: all are known, and none is given twice."""

    def validate(names: Names) -> Names:
        check_known(kind, names, known)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"given twice: {', '.join(twice)}")
        return names

    return AfterValidator(validate)

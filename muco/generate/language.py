"""The language of a text, by the package py3langid, which contains its model."""

from __future__ import annotations

from muco.core.errors import MucoError

MIN_CHARACTERS = 40
"""The language of shorter texts is not reliably recognized."""
_NO_LANGUAGE = "zxx"
"""The package's code for numbers, addresses and the like."""


def check_language(language: str) -> None:
    """Raise MucoError if the package is missing or does not know the language."""
    try:
        import py3langid  # pyright: ignore[reportMissingImports]
    except ImportError:
        message = "filters.language needs py3langid: pip install 'muco[language]'"
        raise MucoError(message) from None
    known = sorted(name for name, _ in py3langid.rank(""))
    if language not in known:
        raise MucoError(f"filters.language: {language!r} is not known. Known: {', '.join(known)}")


def is_other_language(text: str, language: str) -> bool:
    """Return whether a text is in another language than the given one; False for short texts."""
    import py3langid  # pyright: ignore[reportMissingImports]

    return len(text) >= MIN_CHARACTERS and py3langid.classify(text)[0] not in (language, _NO_LANGUAGE)

"""Which names may become names of files and folders: of runs, data sets and components."""

from __future__ import annotations

import re

NAME_RULE = "use at most 128 letters, digits, '.', '_' and '-', and begin with a letter or a digit"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def check_name(name: str) -> str:
    """Return the name; raise ValueError unless it is the same file name, in the same folder, everywhere."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{NAME_RULE}: it names files")
    return name

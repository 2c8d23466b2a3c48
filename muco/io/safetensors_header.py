"""The header of a safetensors file: JSON with names, dtypes and shapes, in no fixed order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO


def read_header(file: BinaryIO) -> dict[str, Any]:
    """Return the header and leave the file at its first tensor; raise ValueError if there is no header."""
    size = int.from_bytes(file.read(8), "little")
    if size > 2**28:
        raise ValueError("not a safetensors file")
    return json.loads(file.read(size))


def sort_header(path: Path) -> None:
    """Sort the metadata of a file in place, so that equal content gives equal bytes."""
    with open(path, "r+b") as file:
        header = read_header(file)
        size = file.tell() - 8
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        assert len(text) == size, "a sorted header has the length of the unsorted one"
        file.seek(8)
        file.write(text)

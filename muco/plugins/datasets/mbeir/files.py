"""The files of M-BEIR: candidates, instructions, texts as UniIR cleans them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError
from muco.core.sample import Content
from muco.io.image_files import ImageFiles, TextAndImage
from muco.io.lazy import LazyContents
from muco.io.table_text import text_of
from muco.io.tables import json_object

DATA_SET_IDS = {
    "visualnews": 0, "fashion200k": 1, "webqa": 2, "edis": 3, "nights": 4,
    "oven": 5, "infoseek": 6, "fashioniq": 7, "cirr": 8, "mscoco": 9,
}  # fmt: skip

_CANDIDATES_EACH = 10_000_000
"""A candidate's number: its data set's times this, and its own."""


@dataclass(frozen=True)
class Kind:
    """A kind of search."""

    query: str
    """Modality, as the files write it."""
    target: str
    group: str
    """From single (S) or several (M) modalities to the same."""

    @property
    def name(self) -> str:
        """As averages are named."""
        return f"{self.query.replace(',', '_')}_to_{self.target.replace(',', '_')}"


KINDS: dict[int, Kind] = {
    0: Kind("text", "image", "S->S"),
    1: Kind("text", "text", "S->S"),
    2: Kind("text", "image,text", "S->M"),
    3: Kind("image", "text", "S->S"),
    4: Kind("image", "image", "S->S"),
    6: Kind("image,text", "text", "M->S"),
    7: Kind("image,text", "image", "M->S"),
    8: Kind("image,text", "image,text", "M->M"),
}
"""By the task id of the files. The groups follow from the modalities; the public tables that give averages of
the four groups are consistent with them."""


def clean(text: str) -> str:
    """Return a text as UniIR cleans it: no blanks or quotes around it, a capital first, a stop at the end."""
    text = text.replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def content_of(row: Mapping[str, Any], text: str, image: str, modality: str, where: str) -> TextAndImage:
    """Return what two columns hold; raise DataError where it is not what the column of modalities says."""
    content = tuple(text_of(row.get(column), f"{where}: {column}") for column in (text, image))
    has = dict(zip(("text", "image"), map(bool, content), strict=True))
    wanted = set(str(row.get(modality)).split(","))
    if not wanted <= has.keys() or any(has[each] != (each in wanted) for each in has):
        found = ",".join(each for each in sorted(has) if has[each]) or "nothing"
        raise DataError(f"{where}: says {row.get(modality)!r} and holds {found}")
    return content[0], content[1]


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


class Pool:
    """A file of candidates, millions of lines; a line is read when its candidate is asked for."""

    def __init__(self, path: Path, images: ImageFiles) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; the suite searches these candidates")
        self._path, self._images = path, images
        numbers: list[int] = []
        offsets: list[int] = [0]
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    try:
                        row = json_object(line)
                    except DataError as error:
                        raise DataError(f"{where}: {error}") from None
                    numbers.append(_number(row.get("did"), where))
                    content_of(row, "txt", "img_path", "modality", where)
                    offsets.append(offsets[-1] + len(line))
                else:
                    offsets[-1] += len(line)
        if not numbers:
            raise DataError(f"{path}: no candidate")
        self._offsets: NDArray[np.int64] = np.asarray(offsets, dtype=np.int64)
        found: NDArray[np.int64] = np.asarray(numbers, dtype=np.int64)
        self._order = np.argsort(found, kind="stable")
        self._numbers = found[self._order]
        twice = np.flatnonzero(np.diff(self._numbers) == 0)
        if len(twice):
            dataset, own = divmod(int(self._numbers[twice[0]]), _CANDIDATES_EACH)
            raise DataError(f"{path}: candidate {dataset}:{own} stands twice")

        self.contents = LazyContents(self._content, range(len(numbers)))

    def _content(self, place: int) -> Content:
        with open(self._path, "rb") as file:
            file.seek(int(self._offsets[place]))
            row = json_object(file.readline())
        return self._images.content(clean(row.get("txt") or ""), row.get("img_path") or "")

    def find(self, did: str, where: str) -> int:
        """Return the place of a candidate by its id; raise DataError where it is not among them."""
        number = _number(did, where)
        place = int(np.searchsorted(self._numbers, number))
        if place == len(self._numbers) or self._numbers[place] != number:
            raise DataError(f"{where}: its positive {did} is not among the candidates of {self._path}")
        return int(self._order[place])


def _number(did: Any, where: str) -> int:
    dataset, _, own = str(did).partition(":")
    if not (dataset.isdecimal() and own.isdecimal() and int(own) < _CANDIDATES_EACH):
        raise DataError(f"{where}: {did!r} is no id; it must be `dataset:number`")
    return int(dataset) * _CANDIDATES_EACH + int(own)

"""WebDataset tars of other tools: making their index, and samples from their members by columns."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from muco.core.errors import DataError
from muco.core.image import EncodedImage, ImageDecoding
from muco.core.sample import Sample
from muco.data.progress import ShowProgress
from muco.data.shards.index import INDEX_JSON, Row, Shard, write_index
from muco.io.columns import PairColumns, pair_from
from muco.io.digest import digest_of
from muco.io.table_text import text_of
from muco.io.tar import is_plain_file, tar_files
from muco.io.untrusted import parse_json

_IMAGE_COLUMNS = ("query_image", "target_image", "negative_image")


def split_name(name: str) -> tuple[str, str]:
    """Return key and suffix as WebDataset does: the file name is split at its first dot."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.parent / stem), suffix.lower()


def key_number(key: str) -> int:
    """Return the hash of a foreign key that the index stores, to detect another sample at its offset.

    Raise DataError if the key is not valid Unicode.
    """
    return zlib.crc32(text_of(key, f"the name {key!a}").encode())


def index_folder(folder: Path, progress: ShowProgress) -> int:
    """Write the index of the tars in a folder, and return the number of samples.

    Raise DataError for no tar, an index that exists, a tar that is compressed, cut short, or out of order.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the folder of the tars")
    if (folder / INDEX_JSON).exists():
        raise DataError(f"{folder} has an index; remove {INDEX_JSON} to make it again")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = next(folder.glob("*.tar.*"), None)
        hint = f"; {packed.name} is compressed: unpack it to a plain tar first" if packed else ""
        raise DataError(f"{folder}: no *.tar in it{hint}")
    shards: list[Shard] = []
    rows: list[Row] = []
    for number, path in enumerate(progress(paths, len(paths), "indexing tars")):
        first = len(rows)
        rows += _rows(path, number)
        shards.append(Shard(path.name, path.stat().st_size, len(rows) - first, digest_of(path)))
    if not rows:
        raise DataError(f"{folder}: the tars hold no sample")
    write_index(folder, shards, rows, {"indexed": "tars of another tool"}, layout="webdataset")
    return len(rows)


def _rows(path: Path, shard: int) -> Iterator[Row]:
    seen: set[str] = set()
    for key, group in groupby(tar_files(path), key=lambda entry: split_name(entry.name)[0]):
        entries = list(group)
        if key in seen:
            raise DataError(f"{path}: the files of {key!r} are not consecutive; sort the tar by name")
        seen.add(key)
        suffixes: set[str] = set()
        for entry in entries:
            if not is_plain_file(entry):
                raise DataError(
                    f"{path}: {entry.name} is a link or a sparse file. Pack the tar again: "
                    "tar --dereference --hard-dereference"
                )
            suffix = split_name(entry.name)[1]
            if suffix in suffixes:
                raise DataError(f"{path}: two files of {key!r} end in {suffix!r}")
            suffixes.add(suffix)
        start, last = entries[0].offset, entries[-1]
        end = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield shard, key_number(key), start, end - start


def foreign_sample(members: Mapping[str, bytes], columns: PairColumns, *, name: str, dataset: str) -> Sample:
    """Return the sample that the columns make of a record of another tool.

    Raise DataError for a column that the record does not have, text that is not UTF-8, no query or target.
    """
    image_columns = [getattr(columns, part) for part in _IMAGE_COLUMNS]
    values = {column: _value(members, column, is_image=column in image_columns) for column in columns.used()}
    try:
        images, pair = pair_from(columns, values, lambda value: _image(value, columns.image_decoding))
    except ValueError as error:
        raise DataError(str(error)) from None
    return Sample(name, dataset, images, (pair,))


def has_column(members: Mapping[str, bytes], column: str) -> bool:
    """Return whether a record of another tool has a column, and not null in it."""
    try:
        return _value(members, column, is_image=True) is not None
    except DataError:
        return False


def _image(value: Any, decoding: ImageDecoding) -> EncodedImage:
    if not isinstance(value, bytes):
        raise DataError(f"a {type(value).__name__} instead of an image: name the member that holds the image")
    return EncodedImage(value).decoded_as(decoding)


def _value(members: Mapping[str, bytes], column: str, *, is_image: bool) -> Any:
    """Return a member's bytes or text, or a value of its JSON; `jpg;png` is the first one that exists."""
    suffix = next((each for each in column.split(";") if each in members), None)
    if suffix is not None:
        return members[suffix] if is_image else _text(members[suffix], suffix)
    head, _, path = column.partition(".")
    if not path or head not in members:
        raise DataError(f"no member {column!r}; there are {', '.join(members)}")
    try:
        value: Any = parse_json(_text(members[head], head))
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
    except ValueError as error:
        raise DataError(f"{head} is no JSON: {error}") from None
    return value


def _text(data: bytes, suffix: str) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{suffix} is not UTF-8: {error}") from None

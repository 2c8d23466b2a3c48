"""The layout of a sample in a shard; docs/shards.md is its specification."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content, Pair, Sample
from muco.core.video import Video, Visual
from muco.io.tar import is_macos_file, is_plain_file

FORMAT_VERSION = 1
"""Version of a sample without videos."""
_VIDEO_VERSION = 2
"""Version of a sample with videos, which are entries of `images`."""

_SUFFIXES = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}
TAR_END = b"\0" * (2 * tarfile.BLOCKSIZE)
_CHECKSUM = slice(148, 156)
"""Position of the checksum in a tar header; counted as blanks when it is computed."""

Elsewhere = Callable[[EncodedImage, str], str | None]
"""(image, its name in this sample) -> the member of an earlier sample that holds it, `000000003.0.jpg`, or
None."""

Fetch = Callable[[str], bytes]
"""Name of such a member -> its bytes."""


@dataclass(frozen=True)
class Member:
    """One file of a sample in the tar: the name without its key, and the bytes."""

    suffix: str
    data: bytes


def to_members(sample: Sample, *, elsewhere: Elsewhere | None = None) -> list[Member]:
    """Return the sample's files: `json` first, then each distinct image or frame once.

    Args:
        sample: to write.
        elsewhere: finds images that the folder holds already; by default each sample holds its own.
    """
    names: dict[int, str] = {}
    files: list[Member] = []
    has_video = False

    def name_of(image: EncodedImage) -> str:
        if image.content_id not in names:
            own = f"{len(files)}.{_suffix(image.data)}"
            names[image.content_id] = (elsewhere and elsewhere(image, own)) or own
            if names[image.content_id] == own:
                files.append(Member(own, image.data))
        return names[image.content_id]

    def entry(visual: Visual) -> str | dict[str, Any]:
        nonlocal has_video
        if not isinstance(visual, Video):
            return name_of(visual)
        has_video = True
        frames = [name_of(frame) for frame in visual.frames]
        return {"frames": frames, "seconds_per_frame": float(visual.seconds_per_frame)}

    def record(content: Content) -> dict[str, Any]:
        images = [entry(visual) for visual in content.images]
        return {"text": content.text, "images": images, **_caption(content.caption)}

    meta = {
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "images": [entry(visual) for visual in sample.images],
        "pairs": [
            {
                "task": pair.task,
                "queries": [record(query) for query in pair.queries],
                "target": record(pair.target),
                "negatives": [record(negative) for negative in pair.negatives],
            }
            for pair in sample.pairs
        ],
        **_caption(sample.caption),
    }
    meta["version"] = _VIDEO_VERSION if has_video else FORMAT_VERSION
    text = json.dumps(meta, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return [Member("json", text.encode()), *files]


def from_members(members: Mapping[str, bytes], *, fetch: Fetch | None = None) -> Sample:
    """Return the sample that `to_members` wrote.

    Args:
        members: bytes by suffix.
        fetch: returns an image that an earlier sample holds.

    Raises:
        DataError: not a sample of this format.
    """
    try:
        meta = json.loads(members["json"])
        if meta["version"] not in (FORMAT_VERSION, _VIDEO_VERSION):
            raise DataError(
                f"sample format {meta['version']}; this muco reads {FORMAT_VERSION} and {_VIDEO_VERSION}. "
                "Prepare the data again."
            )

        known: dict[str, EncodedImage] = {}

        def images(entries: Sequence[Any]) -> tuple[Visual, ...]:
            return tuple(video(each) if isinstance(each, dict) else image(_text(each)) for each in entries)

        def video(entry: Mapping[str, Any]) -> Video:
            frames = tuple(image(_text(name)) for name in entry["frames"])
            return Video(frames, float(entry["seconds_per_frame"]))

        def image(name: str) -> EncodedImage:
            if name not in known:
                is_elsewhere = name.count(".") == 2  # 000000003.0.jpg, a member of another sample
                known[name] = EncodedImage(
                    fetch(name) if fetch is not None and is_elsewhere else members[name]
                )
            return known[name]

        def content(record: Mapping[str, Any]) -> Content:
            return Content(_text(record["text"]), images(record["images"]), _text(record.get("caption", "")))

        pairs = tuple(
            Pair(
                task=_text(pair["task"]),
                queries=tuple(map(content, pair["queries"])),
                target=content(pair["target"]),
                negatives=tuple(map(content, pair["negatives"])),
            )
            for pair in meta["pairs"]
        )
        return Sample(
            sample_id=_text(meta["sample_id"]),
            dataset=_text(meta["dataset"]),
            images=images(meta["images"]),
            pairs=pairs,
            caption=_text(meta.get("caption", "")),
        )
    except KeyError as error:
        raise DataError(f"{error} is missing from the sample") from None
    except (TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"not a sample: {error}") from None


def tar_bytes(key: str, members: Sequence[Member]) -> bytes:
    """Return the members as tar entries, the same bytes on every machine at any time."""
    return b"".join(tar_entry(f"{key}.{member.suffix}", member.data) for member in members)


def tar_entry(name: str, data: bytes) -> bytes:
    """Return a file as a tar entry: USTAR header without time, user and host, content, padding."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def parse_tar(data: bytes, *, key: str) -> dict[str, bytes]:
    """Return the members, by suffix, of the one sample whose tar entries are `data`.

    Reads only what `tar_bytes` writes, plain USTAR headers: several times faster than `tarfile`.

    Raises:
        DataError: the bytes are cut short, or belong to another sample: the index does not fit the tar.
    """
    members: dict[str, bytes] = {}
    offset = 0
    while offset < len(data):
        header = data[offset : offset + tarfile.BLOCKSIZE]
        name, size = _parse_header(header, key)
        own_key, _, suffix = name.partition(".")
        if own_key != key:
            raise DataError(f"the tar holds {name!r} where the index has {key!r}")
        offset += tarfile.BLOCKSIZE
        content = data[offset : offset + size]
        if len(content) != size:
            raise DataError(f"{name} is cut short: {len(content)} of {size} bytes")
        members[suffix] = content
        offset += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members


def _parse_header(header: bytes, key: str) -> tuple[str, int]:
    """Return name and size of a regular file."""
    try:
        if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != _octal(header[_CHECKSUM]):
            raise ValueError("its checksum is wrong")
        if header[156:157] != tarfile.REGTYPE:
            raise ValueError("not a regular file")
        return header[:100].rstrip(b"\0").decode("ascii"), _octal(header[124:136])
    except ValueError as error:
        raise DataError(f"no tar entries where the index has {key!r}: {error}") from None


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0"), 8)


def tar_entries(data: bytes, *, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files whose tar entries are `data`; `name` is for messages.

    Raises:
        DataError: the bytes are cut short, or no tar entries.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                if entry.size < 0:
                    raise DataError(f"{entry.name} has a negative size")
                if entry.isdir() or is_macos_file(entry.name):
                    continue
                if not is_plain_file(entry):
                    raise DataError(f"{entry.name} is no plain file; index the tars again")
                content = data[entry.offset_data : entry.offset_data + entry.size]
                if len(content) != entry.size:
                    raise DataError(f"{entry.name} is cut short: {len(content)} of {entry.size} bytes")
                yield entry.name, content
    except DataError:
        raise
    except Exception as error:
        # tarfile raises many kinds on broken headers, RecursionError and IndexError among them.
        raise DataError(f"no tar entries where the index has {name!r}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} instead of text")
    return value


def _caption(caption: str) -> dict[str, str]:
    return {"caption": caption} if caption else {}


def _suffix(data: bytes) -> str:
    return next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "bin")

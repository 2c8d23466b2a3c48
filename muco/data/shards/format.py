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

FORMAT_VERSION = 1
"""Of a sample without videos."""
_VIDEO_VERSION = 2
"""Of a sample with one; the only difference is how a video stands among the images."""

_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


_CHECKSUM = slice(148, 156)
"""Of a tar header, taken as blanks where it is computed."""

Elsewhere = Callable[[EncodedImage, str], str | None]
"""(image, the name it would have in this sample) -> `000000003.0.jpg`, the member of an earlier sample that
holds it, if one does."""

Fetch = Callable[[str], bytes]
"""Returns such a member's bytes."""


@dataclass(frozen=True)
class Member:
    """One file of a sample in the tar: what follows the key, and the bytes."""

    suffix: str
    data: bytes


def to_members(sample: Sample, *, elsewhere: Elsewhere | None = None) -> list[Member]:
    """Return the sample's files: `json` first, then each distinct image or frame once.

    Args:
        sample: what is written.
        elsewhere: where the folder holds an image already, if it does; else the sample holds it.
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

    def shown(visual: Visual) -> str | dict[str, Any]:
        nonlocal has_video
        if not isinstance(visual, Video):
            return name_of(visual)
        has_video = True
        frames = [name_of(frame) for frame in visual.frames]
        return {"frames": frames, "seconds_per_frame": float(visual.seconds_per_frame)}

    def record(content: Content) -> dict[str, Any]:
        images = [shown(visual) for visual in content.images]
        return {"text": content.text, "images": images, **_captioned(content.caption)}

    meta = {
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "images": [shown(visual) for visual in sample.images],
        "pairs": [
            {
                "task": pair.task,
                "queries": [record(query) for query in pair.queries],
                "target": record(pair.target),
                "negatives": [record(negative) for negative in pair.negatives],
            }
            for pair in sample.pairs
        ],
        **_captioned(sample.caption),
    }
    meta["version"] = _VIDEO_VERSION if has_video else FORMAT_VERSION
    text = json.dumps(meta, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return [Member("json", text.encode()), *files]


def from_members(members: Mapping[str, bytes], *, fetch: Fetch | None = None) -> Sample:
    """Return the sample that `to_members` wrote.

    Args:
        members: bytes by suffix.
        fetch: reads an image that an earlier sample holds.

    Raises:
        DataError: not a sample of this format.
    """
    try:
        meta = json.loads(members["json"])
        if meta["version"] not in (FORMAT_VERSION, _VIDEO_VERSION):
            raise DataError(
                f"sample format {meta['version']}; this muco reads {FORMAT_VERSION} and {_VIDEO_VERSION}. "
                "Prepare the data anew."
            )

        found: dict[str, EncodedImage] = {}

        def images(entries: Sequence[Any]) -> tuple[Visual, ...]:
            return tuple(video(each) if isinstance(each, dict) else image(_text(each)) for each in entries)

        def video(entry: Mapping[str, Any]) -> Video:
            frames = tuple(image(_text(name)) for name in entry["frames"])
            return Video(frames, float(entry["seconds_per_frame"]))

        def image(name: str) -> EncodedImage:
            if name not in found:
                data = fetch(name) if fetch is not None and is_elsewhere(name) else members[name]
                found[name] = EncodedImage(data)
            return found[name]

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
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"not a sample: {error}") from None


def is_elsewhere(name: str) -> bool:
    """Say whether an image's name is that of another sample's member: `000000003.0.jpg`."""
    return name.count(".") == 2


def tar_bytes(key: str, members: Sequence[Member]) -> bytes:
    """Return the members as tar entries, the same bytes on every machine and day."""
    buffer = io.BytesIO()
    for member in members:
        entry = tarfile.TarInfo(f"{key}.{member.suffix}")
        entry.size = len(member.data)
        entry.mode = 0o644
        buffer.write(entry.tobuf(tarfile.USTAR_FORMAT))
        buffer.write(member.data)
        buffer.write(b"\0" * (-len(member.data) % tarfile.BLOCKSIZE))
    return buffer.getvalue()


def parse_tar(data: bytes, *, key: str) -> dict[str, bytes]:
    """Return the members by suffix of the one sample whose tar entries are `data`.

    Reads what `tar_bytes` writes, plain USTAR headers: several times faster than `tarfile`.

    Raises:
        DataError: the bytes are cut short, or are another sample's: the index does not fit the tar.
    """
    members: dict[str, bytes] = {}
    offset = 0
    while offset < len(data):
        header = data[offset : offset + tarfile.BLOCKSIZE]
        name, size = _parse_header(header, key)
        found, _, suffix = name.partition(".")
        if found != key:
            raise DataError(f"the index says {key!r} lies here, the tar holds {name!r}")
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
            raise ValueError("it is no regular file")
        return header[:100].rstrip(b"\0").decode("ascii"), _octal(header[124:136])
    except ValueError as error:
        raise DataError(f"no tar entries where the index says {key!r} lies: {error}") from None


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0"), 8)


def tar_entries(data: bytes, *, what: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files whose tar entries are `data`.

    Raises:
        DataError: the bytes are cut short, or no tar entries.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                content = file.read() if file else b""
                if len(content) != entry.size:
                    raise DataError(f"{entry.name} is cut short: {len(content)} of {entry.size} bytes")
                yield entry.name, content
    except tarfile.TarError as error:
        raise DataError(f"no tar entries where the index says {what!r} lies: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where text belongs")
    return value


def _captioned(caption: str) -> dict[str, str]:
    return {"caption": caption} if caption else {}


def _suffix(data: bytes) -> str:
    return next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "bin")

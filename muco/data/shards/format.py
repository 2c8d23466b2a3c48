"""The layout of a sample in a shard; docs/shards.md is its specification."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content, Pair, Sample
from muco.core.video import Video, Visual

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

    `elsewhere` finds images that the folder holds already; by default each sample holds its own.
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
    """Return the sample that `to_members` wrote, from bytes by suffix; raise DataError if it is none.

    `fetch` returns an image that an earlier sample holds.
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


def tar_entry(name: str, data: bytes) -> bytes:
    """Return a file as a tar entry, the same bytes everywhere: a USTAR header without time, content."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} instead of text")
    return value


def _caption(caption: str) -> dict[str, str]:
    return {"caption": caption} if caption else {}


def _suffix(data: bytes) -> str:
    return next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "bin")

"""The training pairs of MMEB: plain, in diverse wordings, or with generated captions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sample import Content, Pair, Sample
from muco.io.table_text import IMAGE_TOKEN, content_of, listed, negatives_of
from muco.io.tables import Row
from muco.plugins.datasets.table_source import TableSource, existing

_FILES = {
    "original": "original-*.parquet",
    "diverse_instruction": "diverse_instruction-*.parquet",
    "captioned": "*_generated_sentence.parquet",
    "train": "train*.parquet",
}
_TOKEN_WITHOUT_IMAGE = ("WebQA",)
"""Their text-only queries carry the image's token all the same."""
_GET = (
    "Fetch it with `hf download --repo-type dataset TIGER-Lab/MMEB-train --local-dir MMEB-train`: 662,000 "
    "pairs to a million, some 50 GB with the images' zip files, which are read as they are."
)
_TEXTS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_CAPTIONS = ("qry_sentence", "pos_sentence")
_NEGATIVES = ("neg_text", "neg_image_path")


class MMEB(TableSource):
    """Pairs of up to twenty data sets, each query led by an instruction.

    References:
        Jiang et al. 2024, arXiv:2410.05160: MMEB, `TIGER-Lab/MMEB-train`.
        Gu et al. 2026, arXiv:2602.06393: the captions, in `naver-ai/M3T`.
    """

    class Config(ComponentConfig):
        path: str
        """The folder with one folder a data set in it."""
        images: str | None = None
        """Where the images lie, as files or in zip and tar archives; by default below `path`."""
        split: Literal["original", "diverse_instruction", "captioned", "train"] = "original"
        """original: fixed wording. diverse_instruction: ten paraphrases. captioned: M3T's copy, which
        describes the images in words. train: copies with mined hard negatives."""
        subsets: tuple[str, ...] | None = None
        """Data sets by the names of their folders; None takes all."""
        limit: PositiveInt | None = None
        """The first so many rows of each data set's file."""
        max_negatives: NonNegativeInt | None = None
        """At most this many hard negatives of a pair, drawn once; None takes all that it has."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def tables(self) -> Sequence[Path]:
        folder = existing(self.config.path, what=_GET)
        pattern = _FILES[self.config.split]
        found = sorted((*folder.glob(f"*/{pattern}"), *folder.glob(f"MMEB_train/*/{pattern}")))
        if not found:
            raise DataError(f"{folder}: no */{pattern}, the tables of split {self.config.split}. {_GET}")
        if self.config.subsets is None:
            return found
        known = sorted({path.parent.name for path in found})
        for name in self.config.subsets:
            if name not in known:
                raise DataError(
                    f"{folder}: no data set {name!r} in split {self.config.split}."
                    f"{did_you_mean(name, known)} Data sets: {', '.join(known)}"
                )
        return [path for path in found if path.parent.name in self.config.subsets]

    def columns(self) -> None:
        return None  # some data sets lack the columns of negatives

    def names_in(self, row: Row) -> Iterator[str]:
        yield from filter(None, (row.text("qry_image_path"), row.text("pos_image_path")))
        texts, images = self._negatives(row)
        yield from {images[min(place, len(images) - 1)] for place in range(len(texts)) if images} - {""}

    def sample_of(self, row: Row) -> Sample:
        missing = [name for name in _TEXTS if name not in row.values]
        if missing:
            raise DataError(f"no column {', '.join(missing)}")
        subset = Path(row.file).parent.name
        read = self.images.image
        query_text, query_image, target_text, target_image = map(row.text, _TEXTS)
        if not query_image and subset in _TOKEN_WITHOUT_IMAGE:
            query_text = query_text.replace(IMAGE_TOKEN, "").lstrip()
        query_caption, target_caption = map(row.text, _CAPTIONS)
        query = content_of(query_text, query_image, read, what="query")
        target = content_of(target_text, target_image, read, what="target", caption=target_caption)
        if not query:
            raise DataError("the query has neither text nor image")
        if not target:
            raise DataError("no positive: the target has neither text nor image")
        texts, images = self._negatives(row)
        pair = Pair(
            task=subset,
            queries=(Content(query.text),),
            target=target,
            negatives=tuple(negatives_of(texts, images, read)),
        )
        return Sample(
            sample_id=f"{subset}/{Path(row.file).stem}/{row.number}",
            dataset=f"mmeb/{subset}",
            images=query.images,
            pairs=(pair,),
            caption=query_caption if query.images else "",
        )

    def _negatives(self, row: Row) -> tuple[list[str], list[str]]:
        """Return the hard negatives drawn: texts, and as many images where any has one."""
        texts, images = (listed(row.values.get(name), name) for name in _NEGATIVES)
        number = max(len(texts), len(images))
        texts += [""] * (number - len(texts))
        images += images[-1:] * (number - len(images))
        kept = [place for place in range(number) if texts[place] or (images and images[place])]
        most = self.config.max_negatives
        draw = random.Random(stable_id(row.file, str(row.number)))
        chosen = draw.sample(kept, len(kept) if most is None else min(most, len(kept)))
        return [texts[place] for place in chosen], [images[place] for place in chosen] if images else []

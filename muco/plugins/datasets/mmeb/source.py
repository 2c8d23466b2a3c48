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
from muco.io.image_files import PublicDecoding
from muco.io.table_source import TableSource, existing
from muco.io.table_text import content_of, negatives_of, text_list
from muco.io.tables import Row
from muco.plugins.datasets.mmeb.texts import without_stray_token

_FILES = {
    "original": "original-*.parquet",
    "diverse_instruction": "diverse_instruction-*.parquet",
    "captioned": "*_generated_sentence.parquet",
    "train": "train*.parquet",
}
_DOWNLOAD = (
    "Fetch it with `hf download --repo-type dataset TIGER-Lab/MMEB-train --local-dir MMEB-train`: up to a "
    "million pairs, about 50 GB. The zip files of images need not be unpacked."
)
_TEXTS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_CAPTIONS = ("qry_sentence", "pos_sentence")
_NEGATIVES = ("neg_text", "neg_image_path")


class MMEB(TableSource):
    """Pairs of up to twenty data sets; each query begins with an instruction.

    References:
        Jiang et al. 2024, arXiv:2410.05160: MMEB, `TIGER-Lab/MMEB-train`.
        Gu et al. 2026, arXiv:2602.06393: the captions, in `naver-ai/M3T`.
    """

    class Config(ComponentConfig):
        path: str
        """The folder that holds a folder for each data set."""
        images: str | None = None
        """The folder of the images, as files or in zip and tar archives; by default `path`."""
        image_decoding: PublicDecoding = "plain"
        split: Literal["original", "diverse_instruction", "captioned", "train"] = "original"
        """original: fixed instructions. diverse_instruction: ten paraphrases of them. captioned: M3T's copy,
        with captions of the images. train: copies with mined hard negatives."""
        subsets: tuple[str, ...] | None = None
        """Names of the data sets' folders; None reads all."""
        limit: PositiveInt | None = None
        """Read this many rows of each file at most."""
        max_negatives: NonNegativeInt | None = None
        """Draw this many hard negatives of a pair at most, always the same ones; None takes all."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def tables(self) -> Sequence[Path]:
        folder = existing(self.config.path, hint=_DOWNLOAD)
        pattern = _FILES[self.config.split]
        paths = sorted((*folder.glob(f"*/{pattern}"), *folder.glob(f"MMEB_train/*/{pattern}")))
        tables = [path for path in paths if not path.parent.name.startswith(".")]
        if not tables:
            raise DataError(f"{folder}: no */{pattern}, the tables of split {self.config.split}. {_DOWNLOAD}")
        names = sorted({path.parent.name for path in tables})
        for name in self.config.subsets or ():
            if name not in names:
                raise DataError(
                    f"{folder}: no data set {name!r} in split {self.config.split}."
                    f"{did_you_mean(name, names)} Data sets: {', '.join(names)}"
                )
        subsets = names if self.config.subsets is None else self.config.subsets
        return [path for path in tables if path.parent.name in subsets]

    def image_names_of(self, row: Row) -> Iterator[str]:
        yield from filter(None, (row.text("qry_image_path"), row.text("pos_image_path")))
        texts, images = self._negatives(row)
        yield from {images[min(index, len(images) - 1)] for index in range(len(texts)) if images} - {""}

    def sample_of(self, row: Row) -> Sample:
        missing = [name for name in _TEXTS if name not in row.values]
        if missing:
            raise DataError(f"no column {', '.join(missing)}")
        subset = Path(row.file).parent.name
        query_text, query_image, target_text, target_image = map(row.text, _TEXTS)
        query_caption, target_caption = map(row.text, _CAPTIONS)
        if not query_image:
            query_text = without_stray_token(subset, query_text)
        images = self.images.images(query_image)
        query = content_of(query_text, images, what="query")
        target_images = self.images.images(target_image)
        target = content_of(target_text, target_images, what="target", caption=target_caption)
        if not query:
            raise DataError("the query has neither text nor image")
        if not target:
            raise DataError("no positive: the target has neither text nor image")
        negatives = tuple(negatives_of(*self._negatives(row), self.images.image))
        return Sample(
            sample_id=f"{subset}/{Path(row.file).stem}/{row.number}",
            dataset=f"mmeb/{subset}",
            images=images,
            pairs=(Pair(subset, (Content(query.text),), target, negatives),),
            caption=query_caption if images else "",
        )

    def _negatives(self, row: Row) -> tuple[list[str], list[str]]:
        """Return the hard negatives drawn: their texts, and as many image names, or none at all."""
        texts, images = (text_list(row.values.get(name), name) for name in _NEGATIVES)
        number = max(len(texts), len(images))
        texts += [""] * (number - len(texts))
        images += images[-1:] * (number - len(images))
        not_empty = [index for index in range(number) if texts[index] or (images and images[index])]
        limit = self.config.max_negatives
        rng = random.Random(stable_id(row.file, str(row.number)))
        drawn = rng.sample(not_empty, len(not_empty) if limit is None else min(limit, len(not_empty)))
        return [texts[index] for index in drawn], [images[index] for index in drawn] if images else []

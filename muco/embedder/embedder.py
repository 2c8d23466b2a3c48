"""A trained model in use: items in, vectors out.

N items, D numbers of an embedding, k questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from muco.console import Terminal, items_bar
from muco.core.dialogue import Context, Dialogue
from muco.core.errors import DataError, MucoError
from muco.core.sample import Content
from muco.embedder.contents import content_of, image_of, is_many
from muco.model.embed import embed
from muco.model.folder import LoadedModel
from muco.vectors.search import Hit, search
from muco.vectors.store import VectorStore

if TYPE_CHECKING:
    from muco.embedder.contents import ImageLike, Item

Vectors = NDArray[np.float32]
Modality = Literal["text", "image", "video"]

_BATCH_TOKENS, _BATCH_TOKENS_ON_CPU = 16384, 2048
"""Language-model tokens, and image patches, that are encoded at once by default. On a CPU, larger batches
leave its caches: 16,384 tokens took 1.4 times as long as 2,048 in benchmarks/peers/encode.py."""
WINDOW = 512
"""Items that are in memory at once, and that chunks of similar length are made of."""


@dataclass(frozen=True)
class EmbedderInfo:
    """What a model is, and what its vectors depend on."""

    name: str
    """Of the run or of the folder."""
    dim: int
    """D."""
    nested_dims: tuple[int, ...]
    """The values of `dim` that `encode` takes: those that a matryoshka loss trained."""
    modalities: tuple[Modality, ...]
    step: int
    """Number of updates; 0 for a backbone that was not trained by muco."""
    settings: dict[str, Any]
    """Packer, backbone and pooler."""
    recipe: dict[str, Any] | None
    """The recipe of the run; None for a model folder."""
    fingerprint: str
    """A hash of weights and settings: models of equal fingerprint give equal vectors."""


class Embedder:
    """Turn texts, images, both, and videos into unit vectors. `muco.load` returns one."""

    def __init__(self, model: LoadedModel, name: str, recipe: dict[str, Any] | None = None) -> None:
        """Take a model; its encoder is on the device that it is to run on."""
        self._encoder = model.encoder.eval()
        self._packer = model.packer
        self._processor = model.encoder.backbone.processor
        backbone, settings = model.settings.backbone, model.settings.dump()
        self._offers = backbone.cls.offers(backbone.config)
        hashed = json.dumps([model.weights, settings], sort_keys=True).encode()
        self.info = EmbedderInfo(
            name=name,
            dim=model.encoder.pooler.embedding_dim,
            nested_dims=model.nested_dims,
            modalities=("text", "image", "video") if "video" in self._offers else ("text", "image"),
            step=model.step,
            settings=settings,
            recipe=recipe,
            fingerprint=blake2b(hashed, digest_size=16).hexdigest(),
        )

    @property
    def num_parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self._encoder.parameters())

    def encode(
        self,
        inputs: Item | Sequence[Item],
        *,
        instruction: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> Vectors:
        """Return the items' vectors, in their order. A vector does not depend on the other items.

        Args:
            inputs: one item or a list. An item is a text (`str`); an image (`Path`, bytes of a file, PIL
                image, or uint8 array [height, width, 3]); or a dict of `text`, `image`, `images` and `video`,
                a list of frames. Transparent images are laid on white, and the EXIF orientation is applied.
            instruction: put before the text of each item as it is: "Find an image of: ".
            dim: cut the vectors to their first `dim` numbers and normalize them again; one of
                `info.nested_dims`.
            batch_tokens: language-model tokens, and image patches, that are encoded at once; None for
                2,048 on a CPU and 16,384 elsewhere. Vectors differ by rounding only.
            show_progress: show a bar with items a second.

        Returns:
            float32 [N, D], unit length; one item gives [1, D].

        Raises:
            TypeError: an item is of another type.
            ValueError: there is no item, an item is empty, or `dim` was not trained.
            DataError: an image is missing or broken, a text is not valid Unicode, or an item exceeds the
                model's context.
        """
        items: Sequence[Any] = inputs if is_many(inputs) else [inputs]
        if not len(items):
            raise ValueError("nothing to encode: the list is empty")
        self.check_dim(dim)
        windows: Iterable[range] = (
            range(start, min(start + WINDOW, len(items))) for start in range(0, len(items), WINDOW)
        )
        if show_progress:
            windows = items_bar(windows, len(items), "encode", Terminal())
        vectors = np.empty((len(items), dim or self.info.dim), dtype=np.float32)
        for rows in windows:
            contents = [_content(items[row], row, instruction) for row in rows]
            made, faults = self.embed_contents(contents, batch_tokens=batch_tokens, dim=dim)
            for row, error in sorted(faults.items()):
                raise DataError(f"item {rows[row]}: {error}")
            vectors[rows.start : rows.stop] = made
        return vectors

    def encode_query(self, inputs: Item | Sequence[Item], **options: Any) -> Vectors:
        """Return the vectors of queries; the same as `encode`, by the name that sentence-transformers uses.

        Packers give queries and documents the same prompt: what tells them apart is `instruction`.
        """
        return self.encode(inputs, **options)

    def encode_document(self, inputs: Item | Sequence[Item], **options: Any) -> Vectors:
        """Return the vectors of documents; see `encode_query`."""
        return self.encode(inputs, **options)

    def encode_turns(
        self,
        image: ImageLike,
        questions: Sequence[str],
        *,
        context: Context | None = None,
        dim: int | None = None,
    ) -> Vectors:
        """Return a vector for each question about an image; the image is encoded once.

        Args:
            image: as for `encode`.
            questions: k texts.
            context: isolated: each question sees the image and itself, so that its vector equals that of
                `encode` for the pair. causal: it also sees the questions before it, as in the paper's
                training, so that their order matters. None: isolated if the backbone offers it.
            dim: as for `encode`.

        Returns:
            float32 [k, D], unit length.

        Raises:
            TypeError: a question is no text.
            ValueError: there is no question, there is no such context, or `dim` was not trained.
            MucoError: the backbone does not offer the context.
            DataError: the image is missing or broken, a question is not valid Unicode, or the dialogue
                exceeds the model's context.
        """
        questions = [] if isinstance(questions, str) else list(questions)
        if not questions:
            raise ValueError("`questions` is a list of texts, with at least one")
        self.check_dim(dim)
        made, faults = embed(self._encoder, [self._joined(image, questions, context)], batch_tokens=2**62)
        for error in faults.values():
            raise error
        return _cut(_finite(made[0].numpy()), dim)

    def similarity(self, first: Vectors, second: Vectors) -> Vectors:
        """Return the cosines of unit vectors [N, D] and [M, D]; float32 [N, M]."""
        return np.asarray(first, dtype=np.float32) @ np.asarray(second, dtype=np.float32).T

    def search(
        self, store: str | Path | VectorStore, query: Item, k: int = 10, *, instruction: str | None = None
    ) -> list[Hit]:
        """Return the k items of a store that are nearest to a query, the best first.

        Args:
            store: made by `muco encode` with this model.
            query: one item; see `encode`.
            k: how many; fewer if the store has fewer.
            instruction: see `encode`.

        Raises:
            ValueError: `query` is a list or empty, or `k` is below 1.
            MucoError: the store was made by another model, or cannot be read.
        """
        if is_many(query):
            raise ValueError("`query` is one item; search for each item of a list")
        opened = store if isinstance(store, VectorStore) else VectorStore.open(Path(store))
        opened.check_model(self.info.fingerprint, self.info.name)
        return search(opened, self.encode(query, instruction=instruction, dim=opened.dim), k)

    def embed_contents(
        self, contents: Sequence[Content], *, batch_tokens: int | None = None, dim: int | None = None
    ) -> tuple[Vectors, dict[int, DataError]]:
        """Return the contents' vectors, and why some cannot be encoded, by index; their vectors are zero.

        See `encode` for the arguments.
        """
        dialogues = [self._packer.inference(content) for content in contents]
        if batch_tokens is None:
            is_cpu = next(self._encoder.parameters()).device.type == "cpu"
            batch_tokens = _BATCH_TOKENS_ON_CPU if is_cpu else _BATCH_TOKENS
        made, faults = embed(self._encoder, dialogues, batch_tokens=batch_tokens)
        vectors = np.zeros((len(contents), dim or self.info.dim), dtype=np.float32)
        for row, vector in made.items():
            vectors[row] = _cut(_finite(vector.numpy()), dim)
        return vectors, faults

    def _joined(self, image: ImageLike, questions: Sequence[str], context: Context | None) -> Dialogue:
        """Return one dialogue of all questions about an image."""
        offered = {"isolated": "isolated_turns", "causal": "causal_context"}
        context = context or ("isolated" if "isolated_turns" in self._offers else "causal")
        if context not in offered:
            raise ValueError(f"context={context!r}: choose isolated or causal")
        if offered[context] not in self._offers:
            raise MucoError(f"the backbone of {self.info.name} does not offer {context} turns; use `encode`")
        shared = image_of(image)
        contents = [content_of({"text": question, "image": shared}) for question in questions]
        single = [self._packer.inference(content) for content in contents]
        turns = tuple(turn for dialogue in single for turn in dialogue.turns)
        return replace(single[0], turns=turns, context=context)

    def check_dim(self, dim: int | None) -> None:
        """Raise ValueError unless vectors may be cut to their first `dim` numbers."""
        nested = self.info.nested_dims
        if dim is None or dim == self.info.dim or dim in nested:
            return
        if not nested:
            raise ValueError(
                f"dim={dim}: {self.info.name} was not trained by a matryoshka loss, so its vectors have "
                f"{self.info.dim} numbers and cannot be cut"
            )
        raise ValueError(f"dim={dim}: {self.info.name} was trained for {', '.join(map(str, nested))}")


def _content(item: Any, row: int, instruction: str | None) -> Content:
    try:
        return content_of(item, instruction=instruction)
    except (TypeError, ValueError, DataError) as error:
        raise type(error)(f"item {row}: {error}") from None


def _cut(vectors: Vectors, dim: int | None) -> Vectors:
    """Return the first `dim` numbers of unit vectors, normalized again."""
    if dim is None or dim == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


def _finite(vectors: Vectors) -> Vectors:
    """Return the vectors; raise MucoError if a number is not finite."""
    if not np.isfinite(vectors).all():
        raise MucoError("an embedding is not finite: the weights are broken. Load an earlier checkpoint.")
    return vectors

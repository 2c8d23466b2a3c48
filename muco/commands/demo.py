"""`muco demo`: a page on this machine that searches a store by text and image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from muco.core.errors import MucoError
from muco.embedder.embedder import Embedder
from muco.embedder.load import load_for_store
from muco.vectors.search import Hit
from muco.vectors.store import VectorStore

if TYPE_CHECKING:
    from PIL.Image import Image

_PAGE_ITEMS = 12
_IMAGE_PIXELS = 768
"""Longer side of an image on the page. The page gets copies, so that it serves no file of the folder."""


def demo(path: Path, *, model: str | None, port: int, console: Console) -> None:
    """Serve a search page at 127.0.0.1 until Ctrl-C.

    The arguments are the options of `muco demo`. Raise MucoError if gradio is not installed, the store or the
    model cannot be read, or the port is taken.
    """
    store = VectorStore.open(path)
    embedder = load_for_store(store, model)
    page = search_page(store, embedder)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise MucoError(f"--port {port}: {error}") from error
    console.print(f"{path} at {address} (Ctrl-C ends it)")
    page.block_thread()


def search_page(store: VectorStore, embedder: Embedder) -> Any:
    """Return the page, a `gradio.Blocks`: a text and an image in, the nearest items out."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MucoError("muco demo needs gradio: pip install 'muco[demo]'") from None

    def search(text: str, image: str | None, number: int) -> tuple[Any, Any]:
        if not (text or image):
            return [], []
        try:
            query = {"text": text or "", "image": Path(image) if image else None}
            hits = embedder.search(store, query, int(number))
        except MucoError as error:
            raise gradio.Error(str(error)) from error
        return list(_pictures(store, hits)), [[f"{hit.score:.3f}", hit.id, hit.text or ""] for hit in hits]

    with gradio.Blocks(title=f"muco: {store.path.name}", analytics_enabled=False) as page:
        gradio.Markdown(f"## {store.path.name}: {len(store.rows):,} items, model {embedder.info.name}")
        with gradio.Row():
            text = gradio.Textbox(label="Text", autofocus=True, scale=2)
            image = gradio.Image(label="Image", type="filepath", height=160)
            number = gradio.Slider(1, 50, value=_PAGE_ITEMS, step=1, label="Items")
        button = gradio.Button("Search", variant="primary")
        gallery = gradio.Gallery(label="Nearest images", columns=6, object_fit="contain")
        table = gradio.Dataframe(headers=["score", "id", "text"], label="Nearest items", interactive=False)
        for event in (button.click, text.submit, image.change):
            event(search, [text, image, number], [gallery, table])
    return page


def _pictures(store: VectorStore, hits: Sequence[Hit]) -> Iterator[tuple[Image, str]]:
    """Yield small images and captions of the hits whose image can still be read."""
    files = store.images
    for hit in hits:
        with suppress(MucoError):
            if hit.image:
                image = files.image(hit.image).decode()
                image.thumbnail((_IMAGE_PIXELS, _IMAGE_PIXELS))
                yield image, f"{hit.score:.3f}  {hit.text or hit.id}"

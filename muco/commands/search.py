"""`muco search`: the items of a store that are nearest to a text, an image, or both."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from muco.core.errors import MucoError
from muco.embedder.load import load_for_store
from muco.vectors.page import write_page
from muco.vectors.store import VectorStore


def search(
    path: Path,
    text: str,
    *,
    image: Path | None,
    model: str | None,
    instruction: str,
    k: int,
    html: Path | None,
    console: Console,
) -> None:
    """Print the nearest items of a store, and write them as a page.

    The arguments are the options of `muco search`. Raise MucoError for what the user can fix.
    """
    if not text and image is None:
        raise MucoError("give a text, or an image with --image FILE, or both")
    store = VectorStore.open(path)
    embedder = load_for_store(store, model)
    query = {"text": text, "image": image}
    hits = embedder.search(store, query, k, instruction=instruction)
    console.print("score  item", style="bold")
    for hit in hits:
        console.print(f"{hit.score:.3f}  {hit.text if hit.text and not hit.image else hit.image or hit.id}")
    if html is not None:
        write_page(html, text, image, hits, store)
        console.print(f"Page: {html}")

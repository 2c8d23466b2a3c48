"""`muco encode`: the vectors of a folder of images, or of a table, as a store."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from muco.console import items_bar
from muco.core.errors import MucoError
from muco.embedder.load import load
from muco.io.table_text import text_of
from muco.vectors.inputs import Columns, read_inputs
from muco.vectors.store import StoreMetadata
from muco.vectors.write import write_store

_SHOWN = 5
"""Skipped items that are named one by one."""


def encode(
    model: str,
    path: Path,
    to: Path,
    *,
    columns: Columns,
    images: Path | None,
    instruction: str,
    dim: int | None,
    dtype: Literal["float32", "float16"],
    batch_tokens: int | None,
    append: bool,
    console: Console,
) -> None:
    """Encode the images in a folder, or the rows of a table, into a store of vectors.

    The arguments are the options of `muco encode`; see `Embedder.encode` for `dim` and `batch_tokens`. Raise
    MucoError for what the user can fix.
    """
    inputs = read_inputs(path, columns, images=images, instruction=instruction)
    embedder = load(model)
    try:
        embedder.check_dim(dim)
    except ValueError as error:
        raise MucoError(f"--{error}") from None
    source = str(Path(model).absolute()) if Path(model).exists() else model
    metadata = StoreMetadata(
        fingerprint=embedder.info.fingerprint,
        model=text_of(source, f"the path {source!a}"),
        instruction=instruction,
        dim=dim or embedder.info.dim,
        dtype=dtype,
        root=str(inputs.root),
    )
    start = time.perf_counter()
    embed = partial(embedder.embed_contents, batch_tokens=batch_tokens, dim=dim)
    track = partial(items_bar, what="encode", console=console)
    written = write_store(to, inputs, metadata, embed, append=append, track=track)
    seconds = time.perf_counter() - start
    for where, reason in list(written.skipped.items())[:_SHOWN]:
        console.print(f"skipped {where}: {reason}")
    if len(written.skipped) > _SHOWN:
        console.print(f"skipped {len(written.skipped):,} items in all")
    console.print(
        f"{to}: {written.num_rows:,} vectors of {metadata.dim} numbers, {written.num_new:,} of them new, in "
        f"{seconds:.1f} s",
    )

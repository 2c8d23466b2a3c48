"""Files of strangers, mutated: every reader of outside data raises MucoError, and no other error.

A row of `FORMATS` writes a good folder and reads it. Each of its files is mutated in turn: bytes at random,
and its structure where the file has one. Without a mutation the reader must succeed.

`HYPOTHESIS_PROFILE=thorough` tries 500 mutations of each file, which takes half an hour.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from muco.ablation.cells import Cell
from muco.ablation.launch.task import Failure, Task, write_failure
from muco.ablation.state import failure_of, last_step
from muco.commands.run import run
from muco.config.load import load_recipe, validate_settings
from muco.config.recipe import Evaluation
from muco.core import EncodedImage, MucoError
from muco.core.errors import DataError
from muco.core.printable import printable
from muco.core.registry import default_registry
from muco.core.sample import Content
from muco.core.video import Video
from muco.data.prepare.convert import Conversion, Layout
from muco.data.prepare.download import DownloadLimits, download
from muco.data.shards.check import check_shards
from muco.data.shards.format import from_members, to_members
from muco.data.shards.reader import ShardReader
from muco.data.shards.webdataset import foreign_sample, index_folder
from muco.evaluation.embedding_store import EmbeddingStore
from muco.evaluation.queries import queries_file, read_queries
from muco.io.columns import PairColumns
from muco.io.image_files import ImageFiles
from muco.io.neighbor_graph import NeighbourGraph
from muco.io.table_text import text_list
from muco.io.tables import rows
from muco.model.build import build_encoder
from muco.model.folder import save_encoder
from muco.model.source import find_model
from muco.report.page import write_report
from muco.run_folder import RunFolder
from muco.training.checkpoint import Checkpoint, restore
from muco.training.log import cut_lines
from muco.training.optimizer import make_optimizers
from muco.vectors.inputs import Columns, read_inputs
from muco.vectors.page import write_page
from muco.vectors.search import search
from muco.vectors.store import StoreMetadata, VectorStore
from muco.vectors.write import write_store
from tests.helpers import eval_files, outside_data, shards
from tests.helpers.backbones import BACKBONES
from tests.helpers.outside_data import (
    image_bytes,
    write_files,
    write_jsonl,
    write_parquet,
    write_tar,
    write_zip,
)
from tests.helpers.small import QUICK, TEXTS, picture

IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

# Mutations

DEEP, LONG = "\0deep", "\0long"
"""Stand for what `json.dumps` does not write: lists in lists, and an integer of 5,000 digits."""
VALUES = [
    None, True, -1, 0, 3, 2**31, 2**63, 10**30, 0.5, 1e999, float("nan"), "", "x", "\ud800", "\0", "../../x",
    "x" * 300, [], {}, [[]], [None], {"x": []}, DEEP, LONG,
]  # fmt: skip
FRAGMENTS = [
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b'"', b"\n", b"\r", b"\t", b";", b"[", b"{", b"null",
    b"NaN", b"-1", b"9" * 5000, b"\\ud800", b"\xed\xa0\x80", b"[" * 3000, b"&a [*a]",
    b"!!python/name:os.system ",
]  # fmt: skip

Edit = tuple[int, float, float, Any, bytes]
"""Operation, where, up to where, a value and a fragment; each operation uses what it needs."""
EDITS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(VALUES),
        st.sampled_from(FRAGMENTS),
    ),
    min_size=1,
    max_size=3,
)


def mutated(data: bytes, edits: list[Edit], suffix: str) -> bytes:
    for operation, start, length, value, fragment in edits:
        at = int(start * len(data))
        end = at + 1 + int(length**4 * len(data))  # mostly short
        with suppress(Exception):  # the data has no such part, or no longer
            if operation < 5:
                data = STRUCTURES[suffix](data, start, length, value)
            else:
                data = BYTES[operation - 5](data, at, end, fragment)
    return data


def flip(data: bytes, at: int, end: int, _: bytes) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << end % 8]) + data[at + 1 :]


def cut(data: bytes, at: int, end: int, _: bytes) -> bytes:
    return data[:at] + data[end:]


def insert(data: bytes, at: int, end: int, fragment: bytes) -> bytes:
    return data[:at] + fragment + data[at if end % 2 else at + len(fragment) :]


def repeat(data: bytes, at: int, end: int, _: bytes) -> bytes:
    return data[:end] + data[at:end] + data[end:]


def swap_numbers(data: bytes, at: int, end: int, _: bytes) -> bytes:
    numbers = [each.span() for each in re.finditer(rb"\d+", data)]
    (a, b), (c, d) = sorted([numbers[at % len(numbers)], numbers[end % len(numbers)]])
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data


BYTES = [flip, cut, insert, repeat, swap_numbers]


def changed(root: Any, where: float, value: Any) -> Any:
    """Return JSON data with one of its values replaced, or removed if `value` is the empty text."""
    slots: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            slots.append((node, key))
            visit(node[key])

    visit(root)
    if not slots or where > 0.97:
        return value
    parent, key = slots[int(where / 0.97 * len(slots))]
    if value == "" and where < 0.5:
        del parent[key]
    else:
        parent[key] = value
    return root


def dumped(value: Any) -> bytes:
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000)
    return text.replace(json.dumps(LONG), "9" * 5000).encode()


def change_json(data: bytes, start: float, _: float, value: Any) -> bytes:
    return dumped(changed(json.loads(data), start, value))


def change_yaml(data: bytes, start: float, _: float, value: Any) -> bytes:
    return dumped(changed(yaml.safe_load(data), start, value))


def change_line(data: bytes, start: float, length: float, value: Any) -> bytes:
    lines = data.splitlines(keepends=True)
    index = int(length * len(lines))
    lines[index] = change_json(lines[index], start, length, value) + b"\n"
    return b"".join(lines)


def change_cell(data: bytes, start: float, _: float, value: Any) -> bytes:
    cells = re.split(rb"([,;\t ]|\r?\n)", data)
    text = value if isinstance(value, str) else repr(value)
    cells[int(start * len(cells))] = text.encode(errors="surrogatepass")
    return b"".join(cells)


def change_column(data: bytes, start: float, length: float, value: Any) -> bytes:
    """Replace a column of a Parquet file by one of another type."""
    table = pq.read_table(io.BytesIO(data))
    index, size = int(start * table.num_columns), len(table)
    cells = [
        None,
        b"\xff",
        [1, None],
        {"a": 1},
        float("nan"),
        True,
        ["['"],
        "[[1], {}]",
        [f"{value}"],
        f"{value}",
    ]
    columns = [pa.array([2**62] * size, pa.timestamp("us")), *(pa.array([cell] * size) for cell in cells)]
    changed_table = table.set_column(index, table.column_names[index], columns[int(length * len(columns))])
    buffer = io.BytesIO()
    pq.write_table(changed_table, buffer)
    return buffer.getvalue()


def change_tar_header(data: bytes, start: float, length: float, value: Any) -> bytes:
    """Write another name, size or type into a header, whose checksum stays right."""
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = headers[int(start * len(headers))]
    header = bytearray(data[at : at + 512])
    sizes, types = (b"-0000000001", b"77777777777", b"00000000000", b"\x80zzzzzzzzzz"), b"0123456gxLKSV\0"
    pick = int(start * 1000)
    field, width, text = [
        (0, 100, f"{value}".encode("latin-1", "replace")),
        (345, 100, f"{value}".encode("latin-1", "replace")),
        (124, 12, sizes[pick % len(sizes)]),
        (156, 1, types[pick % len(types) :]),
    ][int(length * 4)]
    header[field : field + width] = text[:width].ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def change_zip_field(data: bytes, start: float, length: float, value: Any) -> bytes:
    """Write extreme numbers into a header of a zip."""
    headers = [match.start() for match in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7]", data)]
    at = headers[int(start * len(headers))] + 4 + 2 * int(length * 21)
    number = value if isinstance(value, int) else 0xFFFF
    return data[:at] + (number % 2**16).to_bytes(2, "little") + data[at + 2 :]


def change_safetensors(data: bytes, start: float, _: float, value: Any) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = dumped(changed(json.loads(data[8 : 8 + size]), start, value))
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


STRUCTURES: dict[str, Callable[[bytes, float, float, Any], bytes]] = {
    ".json": change_json,
    ".yaml": change_yaml,
    ".jsonl": change_line,
    ".csv": change_cell,
    ".tsv": change_cell,
    ".txt": change_cell,
    ".parquet": change_column,
    ".tar": change_tar_header,
    ".zip": change_zip_field,
    ".npz": change_zip_field,
    ".safetensors": change_safetensors,
}

# Readers

TABLE_ROWS = [
    {"id": f"c{n}", "text": f"q {n}", "image": f"{n}.png", "wrong": "['a']", "relevant": f"c{n}", "number": n}
    for n in range(3)
]


def component(kind: str, name: str, **options: Any) -> Any:
    cls = default_registry().component(kind, name)
    return cls(cls.Config(**options))


def no_progress(items: Any, *_: Any) -> Any:
    return items


def write_table(folder: Path, name: str) -> None:
    write_files(folder, {f"{n}.png": image_bytes(n, (2, 2), "PNG") for n in range(3)})
    if name.endswith("arrow"):
        table = pa.Table.from_pylist(TABLE_ROWS)
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    elif name.endswith("parquet"):
        write_parquet(folder / name, TABLE_ROWS)
    elif name.endswith("jsonl"):
        write_jsonl(folder / name, TABLE_ROWS)
    elif name.endswith("gz"):
        write_jsonl(folder / name, TABLE_ROWS)
        (folder / name).write_bytes(gzip.compress((folder / name).read_bytes()))
    elif name.endswith("json"):
        (folder / name).write_text(json.dumps(TABLE_ROWS))
    else:
        delimiter = "\t" if name.endswith("tsv") else ";"
        lines = [list(TABLE_ROWS[0]), *(list(row.values()) for row in TABLE_ROWS)]
        (folder / name).write_text("".join(delimiter.join(map(str, line)) + "\n" for line in lines))


def read_table(folder: Path, name: str) -> None:
    for row in rows(folder / name):
        for value in row.values.values():
            with suppress(MucoError):
                text_list(value, "x")
    if not name.endswith(".json"):
        columns = {"query_text": "text", "query_image": "image", "target_text": "text", "task": "id"}
        columns |= {"negative_text": "wrong", "seconds_column": "number"}
        read_source(component("source", "pairs", path=str(folder), columns=columns))
    read_suite(component("suite", "pairs", data=str(folder), queries=name, candidates=name, id="id"))


def read_source(source: Any) -> None:
    len(source)
    source.revision()
    for record in source.records():
        with suppress(MucoError):
            source.name_of(record)
            list(source.files_of(record))
            source.sample(record)


def read_suite(suite: Any) -> None:
    suite.verify_data()
    for task in suite.tasks():
        for content in (*task.queries, *task.pool):
            with suppress(MucoError):
                _ = content.content_id


IMAGE_KINDS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


def write_image(folder: Path, suffix: str) -> None:
    modes = {"png": "P", "gif": "P", "webp": "RGBA", "tif": "RGBA"}
    image = Image.new(modes.get(suffix, "RGB"), (9, 7), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"transparency": 1} if image.mode == "P" else {}
    image.save(
        folder / f"a.{suffix}", IMAGE_KINDS[suffix], **options, **({"exif": exif} if suffix == "jpg" else {})
    )


def read_image(folder: Path, suffix: str) -> None:
    image = EncodedImage((folder / f"a.{suffix}").read_bytes())
    for use in (lambda: image.size, image.decode, image.faithful):
        use()


PHOTOS = {f"photos/{'long' * 30 if n else ''}{n}.png": image_bytes(n, (2, 2), "PNG") for n in range(2)}


def write_archive(folder: Path, name: str) -> None:
    if name.endswith(".zip"):
        write_zip(folder / name, PHOTOS, deflated=name == "deflated.zip")
        return
    form = tarfile.PAX_FORMAT if name == "pax.tar" else tarfile.GNU_FORMAT
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w", format=form) as tar:
        for path, data in PHOTOS.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def read_archive(folder: Path, name: str) -> None:
    images = ImageFiles([folder / name])
    names = images.names_in("photos")
    for each in ("photos/0.png", *names):
        images.image(each)
        images.location(each)


def write_listed(folder: Path) -> None:
    write_archive(folder, "a.zip")
    read_listed(folder)
    (listed,) = (folder / "cache/archives").glob("*.sqlite")
    shutil.copy(listed, folder / "list.sqlite")


def read_listed(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCO_CACHE", str(folder / "cache"))
        for listed in (folder / "cache/archives").glob("*.sqlite"):
            shutil.copy(folder / "list.sqlite", listed)
        read_archive(folder, "a.zip")


def write_shards(folder: Path) -> None:
    shards.write(
        folder / "s", [shards.plain(n, picture("red", (4, 4))) for n in range(3)], max_shard_bytes=3000
    )


def read_shards(folder: Path, columns: PairColumns | None = None) -> None:
    check_shards(folder / "s", columns=columns, decode=True, progress=no_progress)
    reader = ShardReader(folder / "s", columns=columns, dataset="d")
    for index in range(len(reader)):
        with suppress(MucoError):
            reader[index]


def write_sample_json(folder: Path) -> None:
    """Write the JSON of a sample apart from its tar; reading puts it back."""
    image = picture("red", (4, 4))
    sample = shards.plain(0, image, Video((image, image), 0.5))
    write_files(folder, {f"a.{member.suffix}": member.data for member in to_members(sample)})


def read_sample_json(folder: Path) -> None:
    members = {path.name.partition(".")[2]: path.read_bytes() for path in folder.iterdir()}
    sample = from_members(members)
    for visual in sample.visuals():
        _ = visual.content_id
    _ = sample.group_id


COLUMNS = PairColumns(
    query_image="png", target_text="txt", query_text="json.q", task="json.t", seconds_column="json.n"
)

RECORD = {"png": image_bytes(1, (2, 2), "PNG"), "txt": b"red\n", "json": b'{"q": "what?", "t": "x", "n": 2}'}


def write_webdataset(folder: Path) -> None:
    members = {
        "png": image_bytes(1, (2, 2), "PNG"),
        "txt": b"red\n",
        "json": b'{"q": "what?", "t": "x", "n": 2}',
    }
    write_tar(
        folder / "s/a.tar", {f"{n}.{suffix}": data for n in range(2) for suffix, data in members.items()}
    )


def read_webdataset(folder: Path) -> None:
    for path in (folder / "s").glob("index.*"):
        path.unlink()
    index_folder(folder / "s", no_progress)
    read_shards(folder, COLUMNS)


def write_webdataset_json(folder: Path) -> None:
    (folder / "a.json").write_text('{"q": ["what?", "which?"], "t": "x", "n": 2, "w": ["a"]}')


def read_webdataset_json(folder: Path) -> None:
    columns = COLUMNS.model_copy(update={"negative_text": "json.w"})
    foreign_sample({**RECORD, "json": (folder / "a.json").read_bytes()}, columns, name="a", dataset="d")


METADATA = {"weights": "abc", "packer": {"name": "single_turn"}}


def write_embeddings(folder: Path) -> None:
    with EmbeddingStore(folder / "vectors", METADATA, dim=4) as store:
        store.add([3, 1, 2], torch.eye(3, 4))


def read_embeddings(folder: Path) -> None:
    with EmbeddingStore(folder / "vectors", METADATA, dim=4) as store:
        wanted = np.array([3, 1, 2, 9])
        vectors = store.vectors(wanted[store.find(wanted) >= 0])
        vectors.block(0, len(vectors))


def write_vectors(folder: Path, name: str) -> None:
    (folder / "t.csv").write_text("id,text,image\na,one,\nb,two,b.png\nc,three,c.png\n")
    write_files(folder, {f"{n}.png": image_bytes(1, (2, 2), "PNG") for n in "bc"})
    read_parts(folder, name)


def read_parts(folder: Path, name: str, *, stop: bool = False) -> None:
    """Encode the table into a store, or go on with it; `stop` after the first part."""

    def encode(contents: Sequence[Content]) -> tuple[NDArray[np.float32], dict[int, DataError]]:
        return np.eye(len(contents), 4, dtype=np.float32), {}

    def track(ranges: Iterable[range], _: int) -> Iterator[range]:
        yield from ranges
        if stop:
            raise StopError

    inputs = read_inputs(folder / "t.csv", Columns("id"))
    metadata = StoreMetadata("a hash", "runs/x", "", 4, "float32", str(folder))
    with suppress(StopError):
        write_store(folder / name, inputs, metadata, encode, track=track)


def write_vector_parts(folder: Path) -> None:
    """Stop before the parts become a store."""
    (folder / "t.csv").write_text("id,text\na,one\nb,two\n")
    read_parts(folder, "s.parquet", stop=True)


def read_vectors(folder: Path, name: str) -> None:
    store = VectorStore.open(folder / name)
    hits = search(store, np.ones((1, store.dim), dtype=np.float32), 2)
    write_page(folder / "page.html", "x", None, hits, store)
    with suppress(MucoError):
        store.check_model("another", "y")


def read_cell(folder: Path) -> None:
    cell = Cell("a hash", load_recipe("quickstart"), folder / "x", None)
    last_step(cell)
    assert failure_of(cell) is not None


def write_cell(folder: Path) -> None:
    write_failure(Task(folder / "x"), Failure(1, "the last line"))
    write_jsonl(folder / "x/train.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])


def write_graph(folder: Path) -> None:
    NeighbourGraph(np.array([[1, 2], [0, -1], [1, 0]], dtype=np.int32), "data", "teacher").write(
        folder / "g.safetensors"
    )


def read_graph(folder: Path) -> None:
    NeighbourGraph.read(folder / "g.safetensors")


def read_run(folder: Path) -> None:
    write_report(folder)
    run_folder = RunFolder(folder)
    run_folder.scored_weights()
    run_folder.check_settings("scenes", {"ties": "share"})
    run_folder.num_threads()
    read_queries(queries_file(folder / "eval", "scenes"))
    run_folder.check(load_recipe("quickstart", SHORT), {"other": "x"}, resume=True, only=None)
    cut_lines(folder / "train.jsonl", 1)


def read_checkpoint(folder: Path) -> None:
    recipe = load_recipe("quickstart", SHORT)
    checkpoint = Checkpoint(folder, 2)
    assert checkpoint.progress().step == 2
    with suppress(MucoError):
        checkpoint.origin()
    model, states = restore(checkpoint, recipe.model, recipe.loss.make())
    make_optimizers(torch.nn.ModuleList([model.encoder, model.loss]), recipe.train).load_state_dict(states)


HUGGING_FACE = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
MODELS = {
    "qwen2_vl": (
        "muco.json",
        "model.safetensors",
        "adapter.safetensors",
        "pooler.safetensors",
        *HUGGING_FACE,
    ),
    "llava_onevision": HUGGING_FACE[:2],
    "idefics": HUGGING_FACE[:2],
    "clip": ("open_clip_config.json", "open_clip_model.safetensors", "fusion.safetensors", *HUGGING_FACE[2:]),
}  # fmt: skip


def write_model(folder: Path, family: str) -> None:
    name, options = BACKBONES[family]
    extra = {"fusion": "mlp"} if family == "clip" else {"adapter": {"rank": 2}}
    values = {
        "name": "x",
        "packer": {"name": "multi_turn", "context": "isolated"},
        "backbone": {"name": name, **options, **extra},
        "pooler": {"name": "turn_token", "projection_dim": 8},
        "evaluate": {},
    }
    model = validate_settings(Evaluation, values, title="a test").model
    save_encoder(build_encoder(model, texts=TEXTS, seed=0), model, folder, step=7)


def read_model(folder: Path) -> None:
    with suppress(Exception):  # the sizes in muco.json fit, as in a folder that was made to deceive
        metadata = json.loads((folder / "muco.json").read_text())
        metadata["files"] = {name: (folder / name).stat().st_size for name in metadata["files"]}
        (folder / "muco.json").write_text(json.dumps(metadata))
    source = find_model(str(folder))
    source.load(source.evaluation("x").model)


def conversion(folder: Path) -> Conversion:
    cls = default_registry().component("source", "pairs")
    config = cls.Config(path=str(folder / "data"), columns={"query_text": "text", "target_text": "id"})
    return Conversion("pairs", config, cls(config), folder / "shards", Layout(max_shard_bytes=1024))


class StopError(Exception):
    pass


def write_journal(folder: Path) -> None:
    """Stop a conversion after its second record."""
    write_table(folder / "data", "a.jsonl")

    def progress(items: Any, *_: Any) -> Iterator[Any]:
        yield from islice(items, 2)
        raise StopError

    with suppress(StopError):
        conversion(folder).run(progress=progress)


def read_journal(folder: Path) -> None:
    conversion(folder).run(progress=no_progress)


def write_downloads(folder: Path) -> None:
    download(["ftp://x/y"], folder, DownloadLimits())


def read_downloads(folder: Path) -> None:
    download(["ftp://x/y"], folder, DownloadLimits())


def read_mbeir(folder: Path) -> None:
    read_suite(component("suite", "mbeir", data=str(folder), pool="both"))


def read_mbeir_source(folder: Path) -> None:
    read_source(component("source", "mbeir", path=str(folder), num_negatives=1))


def read_mmeb(folder: Path) -> None:
    read_suite(component("suite", "mmeb", data=str(folder)))


def read_mmeb_source(folder: Path) -> None:
    read_source(component("source", "mmeb", path=str(folder), split="captioned"))


def read_m3t(folder: Path) -> None:
    read_source(component("source", "m3t", path=str(folder)))


def write_captioned(folder: Path) -> None:
    write_parquet(folder / "CIRR/x_generated_sentence.parquet", outside_data.captioned_rows(2))


@dataclass(frozen=True)
class Format:
    """A kind of outside data."""

    name: str
    write: Callable[[Path], None] | str
    """Writes a good folder; or the part of a finished run that is copied."""
    read: Callable[[Path], object]
    files: tuple[str, ...]
    """What is mutated, one at a time."""
    examples: int = 12
    """Mutations of a file in a usual run of the tests."""


TABLES = ("a.csv", "a.tsv", "a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow")
ARCHIVES = ("stored.zip", "deflated.zip", "pax.tar", "gnu.tar", "a.tar.gz")
MBEIR = "mbeir_edis_task2"
FORMATS = [
    *(Format(f"table-{n}", partial(write_table, name=n), partial(read_table, name=n), (n,)) for n in TABLES),
    *(Format(f"image-{n}", partial(write_image, suffix=n), partial(read_image, suffix=n), (f"a.{n}",), 30)
      for n in IMAGE_KINDS),
    *(Format(n, partial(write_archive, name=n), partial(read_archive, name=n), (n,), 30) for n in ARCHIVES),
    Format("list of archives", write_listed, read_listed, ("list.sqlite",)),
    Format("shards", write_shards, read_shards, ("s/index.json", "s/index.npy", "s/shard-000000.tar"), 20),
    Format("sample", write_sample_json, read_sample_json, ("a.json",), 50),
    Format("webdataset", write_webdataset, read_webdataset, ("s/a.tar",), 20),
    Format("webdataset-json", write_webdataset_json, read_webdataset_json, ("a.json",), 50),
    Format("store", write_embeddings, read_embeddings, (
        "vectors/about.json", "vectors/0000.rows", "vectors/0000.vectors")),
    Format("graph", write_graph, read_graph, ("g.safetensors",), 30),
    Format("journal", write_journal, read_journal, (".shards.partial/journal.sqlite",)),
    Format("downloads", write_downloads, read_downloads, ("downloads.sqlite",)),
    Format("mbeir-suite", eval_files.write_mbeir, read_mbeir, (
        f"query/test/{MBEIR}_test.jsonl", f"cand_pool/local/{MBEIR}_cand_pool.jsonl",
        f"qrels/test/{MBEIR}_test_qrels.txt", "instructions/query_instructions.tsv")),
    Format("mbeir-source", outside_data.write_mbeir, read_mbeir_source, (
        "query/union_train/mbeir_union_up_train.jsonl",
        "cand_pool/global/mbeir_union_train_cand_pool.jsonl")),
    Format("mmeb-suite", lambda folder: eval_files.write_mmeb(folder, ["CIRR"], second=True), read_mmeb, (
        "CIRR/test-00000-of-00001.parquet",)),
    Format("mmeb-source", write_captioned, read_mmeb_source, ("CIRR/x_generated_sentence.parquet",)),
    Format("m3t", lambda folder: outside_data.write_m3t(folder, 2), read_m3t, ("M3T_train/M3T.parquet",)),
    Format("run", ".", read_run, (
        "recipe.yaml", "summary.json", "environment.json", "data.json", "train.jsonl", "eval/scenes.json",
        "eval/scenes.gallery.json", "eval/scenes.queries.parquet"), 8),
    Format("cell", write_cell, read_cell, ("x.failed.json", "x/train.jsonl"), 30),
    *(Format(f"vectors-{n[0]}", partial(write_vectors, name=n[0]), partial(read_vectors, name=n[0]), n, 30)
      for n in (("s.parquet",), ("s.npy", "s.json", "s.jsonl"))),
    Format("vectors-parts", write_vector_parts, partial(read_parts, name="s.parquet"), (
        ".s.parquet.parts/000000000.npz", ".s.parquet.parts/plan.json"), 30),
    Format("checkpoint", "checkpoints/step-000002", read_checkpoint, (
        "checkpoint.json", "progress.json", "training.pt"), 5),
    *(Format(f"model-{n}", partial(write_model, family=n), read_model, files, 2)
      for n, files in MODELS.items()),
]  # fmt: skip
CASES = [(each, file) for each in FORMATS for file in each.files]
SHORT = [*QUICK, "train.num_steps=2", "train.checkpoint_every=2", "train.log_every=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with its scores."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    run(load_recipe("quickstart", SHORT), folder=folder, console=Console(file=io.StringIO()))
    return folder


@pytest.fixture
def good(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The good folder of a format."""
    format_, _ = request.node.callspec.params["case"]
    folder = tmp_path / "work"  # where it is read: some files name their folder
    if isinstance(format_.write, str):
        shutil.copytree(request.getfixturevalue("finished") / format_.write, folder)
    else:
        folder.mkdir()
        format_.write(folder)
    return folder.rename(tmp_path / "good")


@pytest.mark.parametrize("case", CASES, ids=[f"{each.name}: {Path(file).name}" for each, file in CASES])
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_raises_muco_errors_only(case: tuple[Format, str], good: Path, tmp_path: Path):
    format_, file = case
    data, work, times = (good / file).read_bytes(), tmp_path / "work", count(1)

    def read(content: bytes) -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        (work / file).write_bytes(content)
        os.utime(work / file, ns=(0, next(times)))  # lists in the cache go by size and time
        format_.read(work)

    read(data)

    @seed(zlib.crc32(f"{format_.name} {file}".encode()))
    @settings(max_examples=500 if IS_THOROUGH else format_.examples, phases=[Phase.generate])
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        try:
            read(mutated(data, edits, Path(file).suffix))
        except MucoError as error:
            printable(str(error)).encode()

    check()


READ_BY_THE_TEST = ("image-", "sample", "webdataset-json", "list of archives")
PIPES = [
    case for case in CASES if not case[0].name.startswith((*READ_BY_THE_TEST, "model-qwen", "model-clip"))
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("case", PIPES, ids=[f"{each.name}: {Path(file).name}" for each, file in PIPES])
@pytest.mark.filterwarnings("ignore")
def test_a_named_pipe_is_not_waited_for(case: tuple[Format, str], good: Path, tmp_path: Path):
    format_, file = case
    work = good.rename(tmp_path / "work")
    (work / file).unlink()
    os.mkfifo(work / file)
    with time_limit(30), suppress(MucoError):
        format_.read(work)


class Waited(BaseException):
    """The time is over; no `Exception`, which `library_errors` would turn into a MucoError."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Waited

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

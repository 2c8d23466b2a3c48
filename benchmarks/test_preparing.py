"""Memory and speed of `muco data prepare` on a table with all rows in one row group.

    pytest benchmarks/test_preparing.py

100,000 rows in the layout of M3T, with texts as long as M3T's, about 600 MB before compression, and a hundred
images in a zip archive. The limit is for all processes of the command together.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

NUM_ROWS, NUM_IMAGES = 100_000, 100
MAX_BYTES = 2**30


@pytest.fixture(scope="module")
def m3t(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "M3T"
    (folder / "M3T_train").mkdir(parents=True)
    texts = pa.array([f"{number:06d} " + "word " * 60 for number in range(1000)])
    column = np.arange(NUM_ROWS)
    seven = np.arange(0, 7 * NUM_ROWS + 1, 7)
    flat = texts.take(pa.array((np.arange(7 * NUM_ROWS) * 31) % 1000))
    answers = pa.ListArray.from_arrays(pa.array(seven.astype(np.int32)), flat)
    two = np.arange(0, 14 * NUM_ROWS + 1, 2)
    wordings = texts.take(pa.array((np.arange(14 * NUM_ROWS) * 17) % 1000))
    wordings = pa.ListArray.from_arrays(pa.array(two.astype(np.int32)), wordings)
    queries = pa.ListArray.from_arrays(pa.array(seven.astype(np.int32)), wordings)
    table = pa.table(
        {
            "qry": queries,
            "pos_text": answers,
            "pos_sentence": answers,
            "neg_text": answers,
            "qry_sentence": texts.take(pa.array(column % 1000)),
            "qry_image_path": [f"images/{number % NUM_IMAGES}.jpg" for number in range(NUM_ROWS)],
            "pos_image_path": [""] * NUM_ROWS,
        }
    )
    pq.write_table(table, folder / "M3T_train" / "M3T.parquet", row_group_size=NUM_ROWS, use_dictionary=False)
    assert pq.ParquetFile(folder / "M3T_train" / "M3T.parquet").num_row_groups == 1
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(NUM_IMAGES):
            buffer = io.BytesIO()
            Image.effect_noise((512, 512), 20 + number).save(buffer, "JPEG", quality=85)
            archive.writestr(f"images/{number}.jpg", buffer.getvalue())
    return folder


def bytes_of_tree(root: int) -> int:
    """Return the resident bytes of a process and its descendants; shared pages count for each."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            sizes[int(folder.name)] = int(fields[21]) * 4096
        except OSError:
            continue
    tree = {root}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(sizes.get(process, 0) for process in tree)


def test_a_row_group_of_100_000_rows_takes_less_than_a_gibibyte(m3t, tmp_path):
    command = [
        sys.executable, "-m", "muco", "data", "prepare", "m3t", "--from", str(m3t), "--to",
        str(tmp_path / "shards"), "--workers", "2",
    ]  # fmt: skip
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, bytes_of_tree(process.pid))
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"{NUM_ROWS:,} samples" in output
    seconds = time.perf_counter() - start
    print(f"\npeak of three processes {peak / 2**20:.0f} MiB, {NUM_ROWS / seconds:.0f} rows a second")
    assert peak < MAX_BYTES

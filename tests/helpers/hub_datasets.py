"""Folders as Hugging Face `datasets` saves them, written by that package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small import picture

COLOURS = ("red", "blue", "green")


def write_dataset(folder: Path, kind: str, *, num_rows: int = 6) -> Path:
    """Write rows of `image`, `caption` and `label` as `arrow` or `parquet`; return the folder."""
    datasets = pytest.importorskip("datasets")

    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), label=datasets.ClassLabel(names=[*COLOURS])
    )
    rows: list[dict[str, Any]] = [
        {
            "image": {"bytes": picture(COLOURS[index % 3], (56 + index, 56)).data, "path": f"{index}.png"},
            "caption": f"picture {index}",
            "label": index % 3,
        }
        for index in range(num_rows)
    ]
    data = datasets.Dataset.from_list(rows, features=features)
    if kind == "arrow":
        datasets.DatasetDict({"train": data}).save_to_disk(str(folder))
    else:
        (folder / "data").mkdir(parents=True)
        data.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return folder

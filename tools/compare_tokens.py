"""Compare the tokens of MMEB's 36 prompts with those of the public code's rendered texts.

    python tools/compare_tokens.py MODEL

MODEL is a run or model folder of muco, or a Qwen-VL checkpoint. For the training tables and both layouts of
the test tables, prints each data set and side: `equal`, or the first token that differs. Exits with 1 if one
differs. `mmeb_prompts.json` beside it has a row of each table, with the user message of the public code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from muco.core import Content
from muco.core.registry import default_registry
from muco.model.source import find_model
from muco.plugins.packers.single_turn import SingleTurn

PROMPTS = Path(__file__).with_name("mmeb_prompts.json")
IMAGE_PAD = "<|image_pad|>"
BASE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n<|emb|><|im_end|>"
)
"""The public code's dialogue of one turn."""


def contents(layout: str, row: dict[str, Any], folder: Path) -> tuple[Content, Content]:
    """Return query and target of a row as the source or the suite `mmeb` reads its table.

    Args:
        layout: `train`, or `first` or `second` of the test tables.
        row: of `mmeb_prompts.json`.
        folder: an empty one, for the table and its images.
    """
    for name in ("q.png", "t.png"):
        Image.new("RGB", (56, 56)).save(folder / name)
    table = folder / row["set"] / "original-0.parquet"
    table.parent.mkdir()
    if layout == "train":
        columns = dict(
            zip(("qry", "qry_image_path", "pos_text", "pos_image_path"), _values(row), strict=True)
        )
        pq.write_table(pa.Table.from_pylist([columns]), table)
        source: Any = default_registry().component("source", "mmeb")
        (sample,) = source(source.Config(path=str(folder))).samples()
        return Content(sample.pairs[0].queries[0].text, sample.images), sample.pairs[0].target
    query, query_image, target, target_image = _values(row)
    columns = {
        "qry_text": query,
        "qry_img_path": query_image,
        "tgt_text": [target],
        "tgt_img_path": [target_image],
    }
    if layout == "second":
        columns |= {"qry_inst": row["query_instruction"], "tgt_inst": row["target_instruction"]}
    pq.write_table(pa.Table.from_pylist([columns]), table)
    suite: Any = default_registry().component("suite", "mmeb")
    (task,) = suite(suite.Config(data=str(folder))).tasks()
    return task.queries[0], task.pool[0]


def compare(processor: Any) -> Iterator[tuple[dict[str, Any], str, list[int], list[int]]]:
    """Yield each row, side, the tokens of muco, and those of the public code's text, tokenized at once."""
    packer = SingleTurn(SingleTurn.Config())
    for row in json.loads(PROMPTS.read_text(encoding="utf-8")):
        with TemporaryDirectory() as folder:
            sides = contents(row["layout"], row, Path(folder))
        for side, content in zip(("query", "target"), sides, strict=True):
            ids = list(processor.render(packer.inference(content)).input_ids)
            num_pads = ids.count(processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD))
            text = BASE.format(row[f"public_{side}"]).replace(IMAGE_PAD, IMAGE_PAD * num_pads)
            yield row, side, ids, processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def main() -> int:
    """Print the comparison; return 1 if a prompt differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    model = parser.parse_args().model
    is_ours = any((Path(model) / name).exists() for name in ("recipe.yaml", "muco.json"))
    source = find_model(model if is_ours else "qwen_vl")
    overrides = () if is_ours else (f"backbone.pretrained={model}",)
    processor: Any = source.load(
        source.evaluation(model, overrides=overrides).model
    ).encoder.backbone.processor
    num_different = 0
    for row, side, ids, expected in compare(processor):
        result = "equal"
        if ids != expected:
            num_different += 1
            at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(ids))
            ours, theirs = (processor.tokenizer.decode(each[at : at + 5]) for each in (ids, expected))
            result = f"token {at}: {ours!r}, public code {theirs!r}"
        print(f"{row['layout']:7} {row['set']:18} {side:7} {result}")
    print(f"{num_different} differ")
    return int(num_different > 0)


def _values(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["query"], row["query_image"], row["target"], row["target_image"]


if __name__ == "__main__":
    sys.exit(main())

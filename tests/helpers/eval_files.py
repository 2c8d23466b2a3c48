"""Small files in the public layouts of MMEB's and M-BEIR's test sets, quirks included."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muco.plugins.datasets.mmeb.suite import DATA_SETS
from tests.helpers.small import picture

IMG = "<|image_1|>"
COLOURS = ("red", "green", "blue", "black", "gold", "pink")


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(COLOURS[number % 6], (56 + number, 56)).data)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def mmeb_row(name: str, number: int, *, second: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Return a row of a data set in the first or second layout, and the images that it names."""
    shape = DATA_SETS[name].shape
    root = f"{name}/Test"
    has_query_image = shape != "t2i"
    query_image = f"{root}/q{number // 2}.png" if has_query_image else ""  # two queries an image
    if shape in ("cls", "qa", "i2t"):
        texts, paths = [f"{COLOURS[(number + k) % 6]}{k // 6 or ''}" for k in range(5)], [""] * 5
        target_inst = ""
    else:
        paths = [f"{root}/t{(number + k) % 6}.png" for k in range(5)]
        texts = [f"a {COLOURS[(number + k) % 6]} disc" if name in ("WebQA", "OVEN") else "" for k in range(5)]
        target_inst = "Represent the given image."
    # A doublet of the right answer, as Visual7W and ChartQA have them.
    texts, paths = [*texts, texts[0]], [*paths, paths[0]]
    instruction, body = f"Represent the {name} query: ", f"question {number}"
    # WebQA and EDIS carry the placeholder without an image.
    marked = has_query_image or name in ("WebQA", "EDIS")
    if second:
        row = {
            "qry_inst": f"{IMG}\n{instruction.strip()}" if marked else instruction.strip(),
            "qry_text": body,
            "qry_img_path": f"images/{query_image}" if query_image else "",
            "tgt_inst": f"{IMG} {target_inst}" if target_inst else "",
            "tgt_text": texts,
            "tgt_img_path": [f"images/{path}" if path else "" for path in paths],
        }
    else:
        row = {
            "qry_text": (f"{IMG}\n" if marked else "") + f"{instruction}{body}\n",
            "qry_img_path": query_image,
            "tgt_text": [
                f"{IMG}\n{target_inst} {text}".rstrip() + "\n" if path else text
                for text, path in zip(texts, paths, strict=True)
            ],
            "tgt_img_path": paths,
        }
    return row, [path for path in (query_image, *paths) if path]


def write_mmeb(
    folder: Path, names: list[str], *, second: bool = False, num_queries: int = 4, zipped: bool = False
) -> None:
    images: list[str] = []
    for name in names:
        rows = []
        for number in range(num_queries):
            row, used = mmeb_row(name, number, second=second)
            rows.append(row)
            images += used
        write_parquet(folder / name / "test-00000-of-00001.parquet", rows)
    images = list(dict.fromkeys(images))
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for number, name in enumerate(images):
                archive.writestr(name, picture(COLOURS[number % 6], (56 + number, 56)).data)
    else:
        write_images(folder / ("image-tasks" if second else "eval_images"), images)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


INSTRUCTIONS = """\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4
text\timage,text\tEDIS\t3\tFind a news image that matches the provided caption.\tb\tc\td
image,text\ttext\tOVEN\t5\tRetrieve a Wikipedia paragraph.\tb\tc\td
image,text\timage\tFashionIQ\t7\tFind a fashion image that aligns.\tb\tc\td
image\ttext\tMSCOCO\t9\tFind an image caption describing the following everyday image.\tb\tc\td
"""


def write_mbeir(folder: Path) -> None:
    """Write four of the sixteen test sets; OVEN lists positives of InfoSeek too."""
    (folder / "instructions").mkdir(parents=True)
    (folder / "instructions" / "query_instructions.tsv").write_text(INSTRUCTIONS)
    everything = []
    images = [f"mbeir_images/q{k}.jpg" for k in range(4)] + [f"mbeir_images/c{k}.jpg" for k in range(6)]
    write_images(folder, images)
    sets = {
        "edis_task2": (3, "text", "image,text", ""),
        "oven_task6": (5, "image,text", "text", ""),
        "fashioniq_task7": (7, "image,text", "image", ""),
        "mscoco_task3": (9, "image", "text", "_test"),
    }
    for name, (dataset, query_kind, candidate_kind, split) in sets.items():
        pool = [
            {
                "did": f"{dataset}:{k}",
                "txt": f'"passage {k} of {name}' if "text" in candidate_kind else None,
                "img_path": f"mbeir_images/c{k}.jpg" if "image" in candidate_kind else None,
                "modality": candidate_kind,
                "src_content": None,
            }
            for k in range(6)
        ]
        everything += pool
        queries, judged = [], []
        for number in range(4):
            positives = [f"{dataset}:{number}", f"{dataset}:{(number + 1) % 6}"][: 1 + number % 2]
            foreign = ["6:3"] if dataset == 5 else []
            queries.append(
                {
                    "qid": f"{dataset}:{number}",
                    "query_txt": f"what is number {number}" if "text" in query_kind else None,
                    "query_img_path": f"mbeir_images/q{number}.jpg" if "image" in query_kind else None,
                    "query_modality": query_kind,
                    "query_src_content": None,
                    "pos_cand_list": positives + foreign,
                    "neg_cand_list": [],
                    "task_id": int(name[-1]),
                }
            )
            judged += [f"{dataset}:{number} 0 {did} 1 {name[-1]}\n" for did in positives + foreign]
        write_lines(folder / f"query/test/mbeir_{name}_test.jsonl", queries)
        write_lines(folder / f"cand_pool/local/mbeir_{name}{split}_cand_pool.jsonl", pool)
        qrels = folder / f"qrels/test/mbeir_{name}_test_qrels.txt"
        qrels.parent.mkdir(parents=True, exist_ok=True)
        qrels.write_text("".join(judged))
    others = [{"did": "6:3", "txt": "of InfoSeek", "img_path": None, "modality": "text", "src_content": None}]
    write_lines(folder / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", everything + others)


def write_pairs(folder: Path) -> None:
    write_images(folder, [f"{k}.png" for k in range(3)])
    write_lines(
        folder / "candidates.jsonl",
        [{"id": f"c{k}", "text": f"a {COLOURS[k]} disc"} for k in range(5)]
        + [{"id": f"i{k}", "image": f"{k}.png"} for k in range(3)],
    )
    write_lines(
        folder / "queries.jsonl",
        [
            {"text": "what is it?", "image": "0.png", "relevant": "c0"},
            {"text": "a green disc", "relevant": ["i1", "c1"]},
            {"text": "blue", "relevant": '["c2"]', "among": ["c0", "c2", "i2"]},
        ],
    )

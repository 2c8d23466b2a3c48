"""Check muco with real weights and tokenizers, which CI does not have.

    python tools/check_real_weights.py --emoji emoji --gguf smollm --tokenizer qwen/models

Each option is a check of its own:

- --emoji: the folder that examples/emoji/prepare.py wrote, with `lite0` and `random`. Through `clip`, the
  features of a picture equal those of timm. The nearest drawing of the other vendor has the right name more
  often than with random weights.
- --gguf: a folder with the .gguf file of a language model like LLaMA; needs the package gguf. The model
  is put into a LLaVA-1.5 checkpoint with a random vision tower. It continues a sentence correctly. Steps
  of LoRA lower the loss. The export gives muco's vectors.
- --tokenizer: a folder with tokenizer.json; may be given again. In each chat template that fits, the pieces
  of a dialogue have the tokens of the whole text, and special tokens in the text of a user are ordinary
  characters.

Prints a line `PASS` or `FAIL` for each; exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

NUM_PICTURES = 128
TEXTS = [
    "what is it?",
    "a dog on the beach",
    'he said "no".',
    "1 + 1 = 2 (really)",
    "eine Stra\u00dfe, \u4e2d\u6587",
]


class Result(NamedTuple):
    """Of a check."""

    passed: bool
    what: str
    figures: str = ""


@torch.no_grad()
def _features(backbone: Any, pixels: Tensor) -> Tensor:
    return backbone._trunk(pixels)


def check_tower(emoji: Path) -> Iterator[Result]:
    """Yield the results for the image tower of the emoji example."""
    import timm
    from safetensors.torch import load_file

    rows = [
        json.loads(line) for line in (emoji / "test/queries.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    files = [Path(row["image"]).name for row in rows[:NUM_PICTURES]]
    shares = {}
    for name in ("lite0", "random"):
        backbone = _clip(emoji / name)
        pixels = {
            side: torch.stack([_pixels(backbone, emoji / "images" / side / file) for file in files])
            for side in ("train", "test")
        }
        features = {side: _features(backbone, each) for side, each in pixels.items()}
        similarity = normalize(features["test"]) @ normalize(features["train"]).T
        shares[name] = (similarity.argmax(1) == torch.arange(len(files))).float().mean().item()
        if name == "lite0":
            own: Any = timm.create_model("tf_efficientnet_lite0").eval()
            own.load_state_dict(load_file(emoji / name / "model.safetensors"))
            own.reset_classifier(0)
            difference = (own(pixels["test"][:16]).detach() - features["test"][:16]).abs().max().item()
            yield Result(difference < 1e-4, "features equal timm's", f"largest difference {difference:.1e}")
    figures = f"{shares['lite0']:.3f}, random weights {shares['random']:.3f}, {len(files)} pictures"
    yield Result(shares["lite0"] > 2 * shares["random"], "top-1 by nearest name", figures)


def _clip(tower: Path) -> Any:
    from muco.plugins.backbones.clip.backbone import Clip

    settings = {"random_init": {}, "image_tower": {"name": "tf_efficientnet_lite0", "pretrained": str(tower)}}
    return Clip.build(Clip.Config.model_validate(settings), texts=TEXTS).eval()


def _pixels(backbone: Any, path: Path) -> Tensor:
    with Image.open(path) as image:
        return backbone.processor.transform(image.convert("RGB"))


def check_language_model(gguf: Path) -> Iterator[Result]:
    """Yield the results for a language model in a LLaVA-1.5 checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(gguf.rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    following = tokenizer.decode(model(prompt).logits[0, -1].argmax()).strip()
    yield Result(following == "Paris", "the capital of France", following)
    with TemporaryDirectory() as folder:
        _write_llava(model, tokenizer, Path(folder) / "llava")
        yield from _check_llava(Path(folder))


def _write_llava(language: Any, tokenizer: Any, folder: Path) -> None:
    """Write a LLaVA-1.5 checkpoint with this language model and a random vision tower."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False
    )
    language.resize_token_embeddings(len(tokenizer))
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    config = LlavaConfig(
        text_config=language.config,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 56, "width": 56}
    LlavaImageProcessorPil(size=side, crop_size=side, do_center_crop=False).save_pretrained(folder)


def _check_llava(folder: Path) -> Iterator[Result]:

    from muco.config.recipe import Evaluation
    from muco.core import MucoError
    from muco.export.write import write_exported
    from muco.model.build import build_encoder
    from muco.model.folder import save_encoder
    from muco.model.source import find_model

    backbone = {"name": "llava", "pretrained": str(folder / "llava"), "template": "chatml"}
    components = {
        "packer": {"name": "single_turn", "system": ""},
        "backbone": {**backbone, "adapter": {"rank": 8, "dropout": 0.0}},
        "pooler": "turn_token",
    }
    settings = Evaluation.model_validate({"name": "check", **components, "evaluate": {}}).model
    encoder = build_encoder(settings, texts=(), seed=0).train()
    losses = _train(encoder, cast(Any, settings.packer.make()), steps=4)
    yield Result(
        losses[-1] < losses[0], "steps of LoRA lower the loss", " ".join(f"{loss:.3f}" for loss in losses)
    )
    save_encoder(encoder.eval(), settings, folder / "model", step=4)
    source = find_model(str(folder / "model"))
    try:
        agreements = write_exported(source, folder / "export", check=True, license_id=None)
    except MucoError as error:
        yield Result(False, "export equals muco", str(error))
        return
    lowest = min(each.cosine for each in agreements)
    yield Result(True, "export equals muco", f"{agreements[0].reader}, lowest cosine {lowest:.6f}")


def _train(encoder: Any, packer: Any, *, steps: int) -> list[float]:
    """Return the loss of a batch, colours of pictures against their names, before each of the steps."""
    from muco.core import Content

    colors = ["red", "green", "blue", "yellow"]
    sides = [
        [Content("which colour?", (_picture(color),)) for color in colors],
        [Content(color) for color in colors],
    ]
    processor = encoder.backbone.processor
    inputs = [processor.prepare([packer.inference(content) for content in side]) for side in sides]
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-4)
    losses = []
    for _ in range(steps):
        queries, targets = (encoder(side).vectors for side in inputs)
        loss = cross_entropy(queries @ targets.T / 0.05, torch.arange(len(colors)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _picture(color: str) -> Any:
    import io

    from muco.core.image import EncodedImage

    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), color).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


def check_tokenizer(folder: Path) -> Iterator[Result]:
    """Yield a result for each chat template that fits the tokenizer."""
    from transformers import AutoTokenizer

    from muco.core import MucoError

    for name in ("vicuna", "mistral", "chatml", "bare"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        extra = {"additional_special_tokens": ["<image>", "<|emb|>", "<|mask|>"]}
        tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
        try:
            processor = _processor(tokenizer, cast(Any, name))
        except MucoError:
            continue  # the template needs special tokens that this tokenizer does not have
        same = sum(_has_tokens_of_the_whole(processor, text) for text in TEXTS)
        figures = f"{same} of {len(TEXTS)} texts, {len(tokenizer)} tokens"
        yield Result(same == len(TEXTS), f"{name}: the tokens are those of the whole text", figures)
        plain = [_special_ids(processor, text) for text in TEXTS]
        attacked = [_special_ids(processor, text + " ".join(_names(tokenizer))) for text in TEXTS]
        what = f"{name}: special tokens in the text of a user are ordinary characters"
        yield Result(attacked == plain, what, f"{len(_names(tokenizer))} special tokens")


def _processor(tokenizer: Any, name: Any) -> Any:
    from muco.plugins.backbones.decoder.attention import RowSettings
    from muco.plugins.backbones.decoder.chat_templates import find_template
    from muco.plugins.backbones.llava.processor import LlavaProcessor

    template, unused = find_template(name, tokenizer, decoder="llama"), cast(Any, None)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaProcessor(tokenizer, unused, template, unused, image_id=image_id, rows=RowSettings())


def _names(tokenizer: Any) -> list[str]:
    return sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def _dialogue(text: str) -> Any:
    from muco.testing import dialogue_of

    return dialogue_of([text], ())


def _has_tokens_of_the_whole(processor: Any, text: str) -> bool:
    pieces = processor.pieces(_dialogue(text))
    whole = "".join(
        piece.text for piece in (*pieces.prefix, *(each for turn in pieces.turns for each in turn))
    )
    return processor.render(_dialogue(text)).input_ids == processor.tokenizer(whole)["input_ids"]


def _special_ids(processor: Any, text: str) -> list[int]:
    special = {number for number, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return [number for number in processor.render(_dialogue(text)).input_ids if number in special]


def main() -> int:
    """Run the checks of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, help="folder of examples/emoji/prepare.py")
    parser.add_argument("--gguf", type=Path, help="folder with a .gguf file")
    parser.add_argument("--tokenizer", type=Path, action="append", default=[], help="folder of a tokenizer")
    arguments = parser.parse_args()
    checks = [(check_tower, arguments.emoji), (check_language_model, arguments.gguf)]
    checks += [(check_tokenizer, folder) for folder in arguments.tokenizer]
    passed = True
    for check, folder in checks:
        for result in check(folder) if folder is not None else ():
            passed &= result.passed
            print(
                f"{'PASS' if result.passed else 'FAIL'} {folder}: {result.what}: {result.figures}", flush=True
            )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

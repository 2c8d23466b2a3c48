"""The layers of a vision-language model, from its configuration as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from muco.core.layers import Block, DialogueShape, Lengths, Linear, ModelLayers, Part
from muco.core.turns import EncoderInputs
from muco.plugins.backbones.decoder.token_sequence import PREFIX
from muco.plugins.backbones.lora import AdaptedSettings, AdapterSettings, adapted_linear

TOKENS = "tokens"
"""Name of the lengths of dialogues, or of padded rows."""
_READ = "read tokens"
"""Name of the number of tokens whose hidden states are read."""

Trained = Literal["all", "adapters", "nothing"]


@dataclass(frozen=True)
class ImageLengths:
    """What one image adds to a chunk."""

    of: Mapping[str, Sequence[int]]
    """As in `Lengths`."""
    tokens: int
    """Of the language model."""


class DecoderLayers(ModelLayers):
    """A vision tower, a projector and a language model."""

    def __init__(
        self,
        parts: tuple[Part, ...],
        *,
        hidden_dim: int,
        causal: bool,
        image: Callable[[int, int], ImageLengths],
        images_of: Callable[[dict[str, Tensor]], Mapping[str, Sequence[int]]],
    ) -> None:
        """Store the parts.

        Args:
            parts: of the model.
            hidden_dim: of the language model.
            causal: whether tokens see only earlier ones.
            image: returns the lengths of an image of a width and height in pixels.
            images_of: returns the lengths of all images of a chunk, from its tensors.
        """
        self.parts = parts
        self.hidden_dim = hidden_dim
        self.causal = causal
        self.image = image
        self.images_of = images_of

    def lengths_of(self, chunk: EncoderInputs) -> Lengths:
        tensors = chunk.tensors
        of = dict(self.images_of(tensors)) if "pixel_values" in tensors else {}
        rows, length = tensors["input_ids"].shape
        segments = tensors.get("segment_ids")
        if "cu_seqlens" in tensors:
            ends = tensors["cu_seqlens"]
            row_of_token = torch.bucketize(torch.arange(length), ends[1:], right=True)
            of[TOKENS] = ends.diff().tolist()
        else:
            row_of_token = torch.arange(rows).repeat_interleave(length)
            of[TOKENS] = [length] * rows
        if chunk.read_tokens is not None:
            of[_READ] = [len(chunk.read_tokens)]
        segment_of_token = torch.full_like(row_of_token, PREFIX) if segments is None else segments.flatten()
        dialogues: dict[int, list[tuple[int, int]]] = {}
        for (row, segment), run in groupby(
            zip(row_of_token.tolist(), segment_of_token.tolist(), strict=True)
        ):
            dialogues.setdefault(row, []).append((segment, sum(1 for _ in run)))
        return Lengths(of, {TOKENS: sum(self._visible(parts) for parts in dialogues.values())})

    def lengths_for(self, dialogues: Sequence[DialogueShape]) -> Lengths:
        of: dict[str, list[int]] = {TOKENS: []}
        visible = 0
        for dialogue in dialogues:
            prefix = dialogue.prefix_tokens
            for width, height in dialogue.images:
                image = self.image(width, height)
                prefix += image.tokens
                for name, lengths in image.of.items():
                    of.setdefault(name, []).extend(lengths)
            turns = dialogue.turn_tokens
            of[TOKENS].append(prefix + sum(turns))
            if dialogue.num_read is not None:
                of.setdefault(_READ, []).append(dialogue.num_read)
            if dialogue.isolated:
                visible += self._visible([(PREFIX, prefix), *enumerate(turns, PREFIX + 1)])
            else:
                visible += self._visible([(PREFIX, prefix + sum(turns))])
        return Lengths(of, {TOKENS: visible})

    def _visible(self, segments: Iterable[tuple[int, int]]) -> int:
        """Return the pairs of a query and a key that the mask of a dialogue allows.

        Args:
            segments: id and length of each; padding, whose id is below that of the prefix, sees itself.
        """
        prefix = pairs = 0
        for segment, length in segments:
            own = length * (length + 1) // 2 if self.causal else length**2
            pairs += length if segment < PREFIX else own + (prefix * length if segment > PREFIX else 0)
            prefix += length if segment == PREFIX else 0
        return pairs


def language_model(text: Mapping[str, Any], config: AdaptedSettings, *, checkpointed: bool) -> Part:
    """Return a decoder with grouped queries and a gated feed-forward layer: Llama, Mistral, Qwen."""
    dim, mlp, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim") or dim // heads
    kv = (text.get("num_key_value_heads") or heads) * head
    trained: Trained = "all" if config.adapter is None else "adapters"
    linears = (
        ("self_attn.q_proj", dim, heads * head),
        ("self_attn.k_proj", dim, kv),
        ("self_attn.v_proj", dim, kv),
        ("self_attn.o_proj", heads * head, dim),
        ("mlp.gate_proj", dim, mlp),
        ("mlp.up_proj", dim, mlp),
        ("mlp.down_proj", mlp, dim),
    )
    layer = Block(
        make_linears(linears, trained, config.adapter, num_reading=3),
        rows=TOKENS,
        attention_dim=heads * head,
        checkpointed=checkpointed,
    )
    others = [replace(layer, repeats=text["num_hidden_layers"] - 1)] if text["num_hidden_layers"] > 1 else []
    last = replace(
        layer,
        linears=tuple(
            each if each.name in ("self_attn.k_proj", "self_attn.v_proj") else replace(each, rows=_READ)
            for each in layer.linears
        ),
    )
    # The embeddings of tokens are trained: all of them, or the rows of the new ones.
    return Part("language model", (*others, last), input_gradient=True)


def make_linears(
    sizes: Iterable[tuple[str, int, int]],
    trained: Trained,
    adapter: AdapterSettings | None = None,
    *,
    num_reading: int = 0,
) -> tuple[Linear, ...]:
    """Return products with weights of these names, inputs and outputs.

    Args:
        sizes: name, inputs and outputs of each.
        trained: with `adapters`, those that the settings name have an adapter.
        adapter: the settings.
        num_reading: how many of the first ones read the input of the block.
    """
    plain = (
        Linear(name, inputs, outputs, trained=trained == "all", reads_input=index < num_reading)
        for index, (name, inputs, outputs) in enumerate(sizes)
    )
    if trained != "adapters" or adapter is None:
        return tuple(plain)
    return tuple(adapted_linear(each, adapter) for each in plain)


def vision_training(config: AdaptedSettings) -> Trained:
    """Return what of the vision tower is trained."""
    if config.adapter is not None and config.adapter.vision:
        return "adapters"
    return "nothing" if config.vision_is_frozen else "all"


def connector_training(config: AdaptedSettings) -> Trained:
    """Return whether a projector that is no part of the vision tower is trained."""
    return "nothing" if config.vision_is_frozen and config.adapter is not None else "all"


def tower(vision: Mapping[str, Any], config: AdaptedSettings, *, num_used: int, checkpointed: bool) -> Part:
    """Return the vision tower of CLIP, SigLIP or Idefics3 in transformers.

    Its lengths are `patches` and `features`, of each picture: without and with the class token.

    Args:
        vision: its configuration.
        config: says what of it is trained.
        num_used: the layers whose output is used, directly or by a later layer.
        checkpointed: whether gradient checkpointing is on.
    """
    trained = vision_training(config)
    dim, mlp = vision["hidden_size"], vision["intermediate_size"]
    patch = vision.get("num_channels", 3) * vision["patch_size"] ** 2
    sizes = [(f"self_attn.{name}", dim, dim) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    sizes += [("mlp.fc1", dim, mlp), ("mlp.fc2", mlp, dim)]
    linears = make_linears(sizes, trained, config.adapter, num_reading=3)
    unused = vision["num_hidden_layers"] - num_used
    blocks = [
        Block(linears, "features", repeats, attention_dim=dim, checkpointed=checkpointed, used=used)
        for repeats, used in ((num_used, True), (unused, False))
        if repeats
    ]
    embed = make_linears(
        [("patch_embedding", patch, dim)], "all" if trained == "all" else "nothing", num_reading=1
    )
    first = Block(embed, "patches")
    return Part("vision tower", (first, *blocks), input_gradient=False, computes_images=True)


def picture_lengths(vision: Mapping[str, Any], count: int, *, class_tokens: int) -> dict[str, Sequence[int]]:
    """Return the lengths of pictures for `tower`."""
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return {"patches": [patches] * count, "features": [patches + class_tokens] * count}

"""The weights of a CLIP under the names of transformers, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.token_embedding": "text_model.embeddings.token_embedding",
    "text.ln_final": "text_model.final_layer_norm",
    "text.text_projection": "text_projection.weight",
    "text.transformer.resblocks": "text_model.encoder.layers",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Of a layer."""
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
_QKV = ("q_proj", "k_proj", "v_proj")


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `CustomTextCLIP` of open_clip as those of a `CLIPModel`."""
    converted = dict[str, Tensor]()
    for name, weight in weights.items():
        if ".attn.in_proj_" in name:
            layer, kind = _replace(name, _NAMES).split(".attn.in_proj_")
            for part, own in zip(_QKV, weight.chunk(3), strict=True):
                converted[f"{layer}.self_attn.{part}.{kind}"] = own
        else:
            new = _replace(_replace(name, _NAMES), _PARTS)
            converted[new] = weight.T if new in _TRANSPOSED else weight
    return {name: weight.contiguous() for name, weight in converted.items()}


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_transformers`."""
    names, parts = ({new: old for old, new in table.items()} for table in (_NAMES, _PARTS))
    converted = dict[str, Tensor]()
    for name, weight in weights.items():
        if ".self_attn.q_proj." in name:
            layer, kind = _replace(name, names).split(".self_attn.q_proj.")
            projections = [weights[name.replace("q_proj", part)] for part in _QKV]
            converted[f"{layer}.attn.in_proj_{kind}"] = torch.cat(projections)
        elif not any(f".self_attn.{part}." in name for part in _QKV):
            own = weight.T.contiguous() if name in _TRANSPOSED else weight
            converted[_replace(_replace(name, names), parts)] = own
    return converted


def _replace(name: str, table: Mapping[str, str]) -> str:
    """Replace the one whole part of a dotted name that the table has."""
    for old, new in table.items():
        if f".{name}.".find(f".{old}.") >= 0:
            return f".{name}.".replace(f".{old}.", f".{new}.", 1).strip(".")
    return name

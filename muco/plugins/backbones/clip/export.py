"""Write two towers of open_clip as a CLIP of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, VisionTransformer
from torch import Tensor, nn

from muco.core.errors import MucoError
from muco.core.exported import Exported
from muco.plugins.backbones.clip.towers import Towers
from muco.plugins.backbones.clip.transformers_layout import to_transformers

_METHODS = {
    "text": ("get_text_features", "pooler_output"),
    "image": ("get_image_features", "pooler_output"),
}
_LIMITS = (
    "An input has a text or an image. The fused vector of both, which muco makes, is in no other tool.",
    "Texts longer than the context are cut; in muco they are errors unless `truncate` is set.",
)


def export_towers(towers: Towers, weights: Mapping[str, Tensor], folder: Path) -> Exported:
    """Write the towers, with these weights, as a `CLIPModel` with its processor.

    Raise MucoError, which says why, if a `CLIPModel` has no such tower.
    """
    from transformers import CLIPModel, CLIPProcessor

    if reasons := list(_reasons(towers)):
        raise MucoError(
            f"this clip cannot be exported: a CLIPModel of transformers has no {', no '.join(reasons)}. "
            "`--layout muco` writes it for muco and open_clip."
        )
    tokenizer = _tokenizer(towers.tokenizer)
    model: Any = CLIPModel(_config(towers.model, towers.model_config["embed_dim"], tokenizer))
    model.load_state_dict(to_transformers(weights))
    model.to(next(iter(weights.values())).dtype).save_pretrained(folder)
    CLIPProcessor(_image_processor(towers), tokenizer).save_pretrained(folder)
    towers.save_config(folder)
    return Exported(type(model).__name__, _METHODS, pools_last_token=False, limits=_LIMITS)


def _reasons(towers: Towers) -> Iterator[str]:
    """Yield what the towers have and a CLIPModel has not."""
    visual, text = towers.model.visual, towers.model.text
    if not isinstance(visual, VisionTransformer):
        yield f"image tower {type(visual).__name__}"
        return
    if not isinstance(text, TextTransformer):
        yield f"text tower {type(text).__name__}"
        return
    if visual.attn_pool is not None or visual.pool_type != "tok":
        yield f"image tower that pools by {visual.pool_type!r} (it takes the class token)"
    if text.pool_type not in ("argmax", "eos") or text.cls_emb is not None or text.attn_mask is None:
        yield f"text tower that pools by {text.pool_type!r}, or reads in all directions"
    if not isinstance(visual.proj, nn.Parameter) or not isinstance(text.text_projection, nn.Parameter):
        yield "other projection than a matrix"
    if not isinstance(visual.ln_pre, nn.LayerNorm):
        yield "image tower without a first norm"
    if _activation(visual) is None or _activation(text) is None:
        yield "activation but GELU and QuickGELU"
    if len(set(visual.image_size)) > 1 or len(set(visual.patch_size)) > 1:
        yield "images or patches that are not square"
    if any("ls_1." in name or "ln_attn" in name for name in towers.model.state_dict()):
        yield "scales or norms within a layer's branches"
    if towers.preprocess.get("resize_mode", "shortest") not in ("shortest", "squash"):
        yield f"resizing by {towers.preprocess['resize_mode']!r}"
    if _end_id(towers.tokenizer) == 2:
        yield "end of text with the id 2, for which it looks elsewhere"


def _activation(tower: Any) -> str | None:
    """Return transformers' name of the activation; None for one that it may compute otherwise."""
    gelu = tower.transformer.resblocks[0].mlp.gelu
    if isinstance(gelu, QuickGELU):
        return "quick_gelu"
    return "gelu" if isinstance(gelu, nn.GELU) and gelu.approximate == "none" else None


def _config(model: Any, dim: int, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    visual, text = model.visual, model.text
    return CLIPConfig(
        projection_dim=dim,
        vision_config={
            **_sizes(visual, dim),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
        },
        text_config={
            **_sizes(text, dim),
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": len(text.positional_embedding),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )


def _sizes(tower: Any, dim: int) -> dict[str, Any]:
    blocks = tower.transformer.resblocks
    norm: LayerNorm = blocks[0].ln_1
    return {
        "hidden_size": tower.transformer.width,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "hidden_act": _activation(tower),
        "layer_norm_eps": norm.eps,
        "projection_dim": dim,
    }


def _end_id(tokenizer: Any) -> int:
    inner = getattr(tokenizer, "tokenizer", None)
    return tokenizer.eot_token_id if inner is None else _ends(inner)[1]


def _ends(tokenizer: Any) -> tuple[int, int]:
    """Return the tokens before and after every text."""
    ids = tokenizer("a")["input_ids"]
    return ids[0], ids[-1]


def _tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer of transformers, with the same tokens."""
    inner = getattr(tokenizer, "tokenizer", None)
    length = tokenizer.context_length
    if inner is not None:
        start, end = inner.convert_ids_to_tokens(list(_ends(inner)))
        inner.bos_token, inner.eos_token, inner.model_max_length = start, end, length
        return inner
    from transformers import CLIPTokenizer

    start, end = (tokenizer.decoder[number] for number in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    return CLIPTokenizer(
        vocab=tokenizer.encoder,
        merges=list(tokenizer.bpe_ranks),
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=length,
    )


def _image_processor(towers: Towers) -> Any:
    from PIL.Image import Resampling
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side, settings = towers.model.visual.image_size[0], towers.preprocess
    squash = settings.get("resize_mode", "shortest") == "squash"
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=square if squash else {"shortest_edge": side},
        do_center_crop=not squash,
        crop_size=square,
        resample=Resampling[settings.get("interpolation", "bicubic").upper()],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )

"""The two towers: read from an open_clip folder, made from random weights, or with a timm image tower."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError
from muco.plugins.backbones.checkpoint import check_fit, read_weights
from muco.plugins.backbones.clip.random_init import (
    RandomInitSettings,
    scratch_config,
    scratch_preprocess,
    scratch_tokenizer,
)
from muco.plugins.backbones.lora import ADAPTER_FILE

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""The first that is there is read; the first is written."""
FUSION_FILE = "fusion.safetensors"
HUB = "hf-hub:"

_UNREAD = (
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "text.attn_mask",
    "text.transformer.embeddings.position_ids",
)
"""What no embedding depends on: the scale of CLIP's own loss, and buffers that older versions saved. The
only keys that may be missing, unexpected or of another shape."""
_TOKENIZER_SETTINGS = ("clean", "strip_sep_token")
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


class ImageTowerSettings(ComponentConfig):
    """An image tower of timm in place of the one that stands in the checkpoint."""

    name: str
    """timm's name of the architecture, `vit_base_patch16_224`."""
    pretrained: str | None = None
    """Folder with timm's `config.json` and `model.safetensors`. Without one the tower is random, which goes
    with `random_init` only."""


@dataclass(frozen=True)
class Towers:
    """An open_clip model, and what its folder says of it."""

    model: Any
    """`open_clip.CustomTextCLIP`."""
    tokenizer: Any
    """open_clip's."""
    model_config: dict[str, Any]
    preprocess: dict[str, Any]
    """mean, std, interpolation, resize_mode, fill_color."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a folder that open_clip too reads as `local-dir:`, with these weights of the model."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "model_cfg": {**self.model_config, "custom_text": True},
            "preprocess_cfg": self.preprocess,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(whole, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
        if hasattr(self.tokenizer, "save_pretrained"):  # the vocabulary of CLIP itself comes with open_clip
            self.tokenizer.save_pretrained(folder)


def read_towers(name: str) -> Towers:
    """Read a folder in open_clip's layout, or a repository of the hub in it.

    Raises:
        MucoError: it is not there, or describes a model that this backbone does not take.
        DataError: a weight is missing, unexpected or of another shape.
    """
    folder = folder_of(name)
    described = _read_json(folder / CONFIG_FILE, name)
    model, images = described.get("model_cfg"), described.get("preprocess_cfg")
    if not isinstance(model, dict) or not isinstance(images, dict) or not {"mean", "std"} <= images.keys():
        raise MucoError(
            f"{name}: {CONFIG_FILE} must hold model_cfg, and preprocess_cfg with the mean and std of images"
        )
    config = _taken(model, name)
    file = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if file is None:
        raise MucoError(f"{name} holds no {' or '.join(WEIGHT_FILES)}; other formats of weights are not read")
    towers = _build(config, name)
    put_weights(towers, _as_custom_text(read_weights(file)), place=name, unread=_UNREAD)
    preprocess = {key: value for key, value in images.items() if key in _PREPROCESS_KEYS}
    return Towers(towers, _tokenizer(folder, name), config, preprocess)


def random_towers(settings: RandomInitSettings, texts: Iterable[str]) -> Towers:
    """Return towers of random weights, from the global torch seed."""
    tokenizer = scratch_tokenizer(settings, texts)
    config = scratch_config(settings, num_tokens=len(tokenizer.tokenizer))
    return Towers(_build(config, "random_init"), tokenizer, config, scratch_preprocess(settings))


def with_image_tower(towers: Towers, settings: ImageTowerSettings) -> Towers:
    """Return the towers with timm's image tower; a new linear map takes its features to the embedding.

    Raises:
        MucoError: timm has no such tower, or its folder is not one of timm's.
        DataError: a weight of its folder is missing, unexpected or of another shape.
    """
    from open_clip.timm_model import TimmModel

    vision: dict[str, Any] = {
        "timm_model_name": settings.name,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    width = towers.model_config["embed_dim"]
    try:
        visual: Any = TimmModel(settings.name, embed_dim=width, pool="", proj="linear")
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise MucoError(f"backbone.image_tower.name: timm cannot make {settings.name!r}: {error}") from error
    about, preprocess = dict(visual.trunk.pretrained_cfg), towers.preprocess
    if settings.pretrained is not None:
        folder = Path(settings.pretrained).expanduser()
        about |= _read_json(folder / "config.json", settings.pretrained).get("pretrained_cfg", {})
        _put_trunk(visual.trunk, about, folder)
        preprocess = {key: about[key] for key in ("mean", "std", "interpolation")}
    visual.image_size = vision["image_size"] = tuple(about["input_size"][1:])
    towers.model.visual = visual
    return replace(towers, model_config={**towers.model_config, "vision_cfg": vision}, preprocess=preprocess)


def put_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, place: str, unread: Collection[str] = ()
) -> None:
    """Load weights into a module; nothing is left random and nothing is left out.

    Args:
        module: takes them.
        weights: by name.
        place: where they come from, in words.
        unread: names that need not agree.

    Raises:
        DataError: a weight is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    message = f"{place}: the weights do not fit the model that its configuration describes"
    check_fit(weights, own, message, unread=unread)
    fits = {name for name in own.keys() & weights.keys() if own[name].shape == weights[name].shape}
    module.load_state_dict({name: weights[name] for name in fits}, strict=False)


def folder_of(name: str) -> Path:
    """Return the folder of that name, or that of a repository of the hub.

    Raises:
        MucoError: it is not there.
    """
    if not name.startswith(HUB):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise MucoError(f"backbone.pretrained: {name} is no folder; a name of the hub begins with {HUB}")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    ours = (FUSION_FILE, ADAPTER_FILE)
    wanted = [CONFIG_FILE, *WEIGHT_FILES, *ours, "*token*", "vocab*", "merges.txt", "config.json", "*.model"]
    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=wanted))
    except (OSError, HFValidationError) as error:
        raise MucoError(f"backbone.pretrained: {name} cannot be loaded: {error}") from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MucoError(f"{name} holds no {path.name}: {error}") from error
    except ValueError as error:
        raise MucoError(f"{name}: {path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise MucoError(f"{name}: {path.name} holds no object")
    return found


def _taken(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the `model_cfg`, or say what of it is not supported."""
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise MucoError(f"{name}: text_cfg and vision_cfg of {CONFIG_FILE} must be objects")
    strange = sorted(set(text.get("tokenizer_kwargs", {})) - set(_TOKENIZER_SETTINGS))
    refused = {
        "a captioning decoder (CoCa)": "multimodal_cfg" in config,
        "a text tower of transformers": bool(text.get("hf_model_name")),
        f"tokenizer mode {text.get('tokenizer_mode')!r}": bool(text.get("tokenizer_mode")),
        f"tokenizer settings {', '.join(strange)}": bool(strange),
    }
    for what, found in refused.items():
        if found:
            raise MucoError(f"{name} has {what}, which clip does not take")
    # Downloads nothing: the weights are those of the folder.
    vision = {**vision, "timm_model_pretrained": False, "output_tokens": False}
    text = {**text, "output_tokens": False}
    taken = {key: value for key, value in config.items() if key != "custom_text"}
    return {**taken, "vision_cfg": vision, "text_cfg": text}


def _build(config: dict[str, Any], name: str) -> Any:
    from open_clip.model import CustomTextCLIP

    try:
        return CustomTextCLIP(**config)
    except (TypeError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise MucoError(f"{name}: {CONFIG_FILE} describes no model of open_clip: {error}") from error


def _tokenizer(folder: Path, name: str) -> Any:
    import open_clip

    try:
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError) as error:
        raise MucoError(f"{name}: its tokenizer cannot be loaded: {error}") from error
    if getattr(getattr(tokenizer, "tokenizer", None), "padding_side", "right") != "right":
        raise MucoError(f"{name} has a tokenizer that pads on the left, which clip does not take")
    return tokenizer


def _as_custom_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an older CLIP, whose text tower had no name, under its name."""
    from open_clip.model import convert_to_custom_text_state_dict

    return convert_to_custom_text_state_dict(weights)


def _put_trunk(trunk: nn.Module, about: dict[str, Any], folder: Path) -> None:
    """Load timm's tower but for its classifier, which an embedder has not."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise MucoError(f"backbone.image_tower.pretrained: {folder} holds no model.safetensors")
    heads = about.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    unread = [f"{head}.{part}" for head in heads for part in ("weight", "bias")]
    put_weights(trunk, read_weights(file), place=str(folder), unread=unread)

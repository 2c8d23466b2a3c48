"""Load or build the two towers: from an open_clip folder, with random weights, or with a timm image tower."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError, library_errors
from muco.io.untrusted import refuse_special_files
from muco.plugins.backbones.checkpoint import PEFT_FILE, adapters_of_peft, check_fit, read_weights
from muco.plugins.backbones.clip.random_init import (
    RandomInitSettings,
    scratch_config,
    scratch_preprocess,
    scratch_tokenizer,
)
from muco.plugins.backbones.clip.transformers_layout import from_transformers
from muco.plugins.backbones.lora import ADAPTER_FILE

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""The first that exists is read; the first name is written."""
EXPORTED_WEIGHTS = "model.safetensors"
"""In a folder of `muco export`: the weights under the names of transformers."""
FUSION_FILE = "fusion.safetensors"
EXPORTED_FUSION = f"fusion/{FUSION_FILE}"
"""vLLM reads every safetensors file beside the model's own."""
HUB = "hf-hub:"

_UNUSED = (
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "text.attn_mask",
    "text.transformer.embeddings.position_ids",
)
"""Weights that no embedding depends on: the scale of CLIP's own loss, and buffers that older versions saved.
Only these may be missing, unexpected or of another shape."""
_TOKENIZER_SETTINGS = ("clean", "strip_sep_token")
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


class ImageTowerSettings(ComponentConfig):
    """An image tower of timm that replaces the one of the checkpoint."""

    name: str
    """Name of the architecture in timm, such as `vit_base_patch16_224`."""
    pretrained: str | None = None
    """Folder with timm's `config.json` and `model.safetensors`. null: random weights, allowed with
    `random_init` only."""
    projection: Literal["linear", "none"] = "linear"
    """linear: a new linear layer, which is trained, maps the tower's features to the embedding. none: the
    features are the embedding, which must have their size."""


@dataclass(frozen=True)
class Towers:
    """An open_clip model, its tokenizer and its configuration."""

    model: Any
    """`open_clip.CustomTextCLIP`."""
    tokenizer: Any
    """Of open_clip."""
    model_config: dict[str, Any]
    preprocess: dict[str, Any]
    """mean, std, interpolation, resize_mode, fill_color."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the towers, with these weights, to a folder that open_clip reads as `local-dir:`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(folder)
        weights = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(weights, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
        if hasattr(self.tokenizer, "save_pretrained"):  # CLIP's own vocabulary is part of open_clip
            self.tokenizer.save_pretrained(folder)

    def save_config(self, folder: Path) -> None:
        """Write `CONFIG_FILE`."""
        model = {**self.model_config, "custom_text": True}
        text = json.dumps({"model_cfg": model, "preprocess_cfg": self.preprocess}, indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_towers(name: str) -> Towers:
    """Load the towers from a folder in open_clip's layout, or from `hf-hub:` and a name.

    Raise MucoError if it does not exist, or describes a model that this backbone does not support, DataError
    if a weight is missing, unexpected or of another shape.
    """
    from open_clip.model import convert_to_custom_text_state_dict

    folder = folder_of(name)
    if (folder / PEFT_FILE).is_file():
        raise adapters_of_peft(name)
    content = _read_json(folder / CONFIG_FILE, name)
    model, images = content.get("model_cfg"), content.get("preprocess_cfg")
    if not isinstance(model, dict) or not isinstance(images, dict) or not {"mean", "std"} <= images.keys():
        raise MucoError(
            f"{name}: {CONFIG_FILE} must hold model_cfg, and preprocess_cfg with the mean and std of images"
        )
    config = _supported(model, name)
    file = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if file is None and not (folder / EXPORTED_WEIGHTS).is_file():
        raise MucoError(f"{name} has no {' or '.join(WEIGHT_FILES)}; other formats of weights are not read")
    towers = _build(config, name)
    # In an older CLIP, the names of the text tower's weights have no prefix.
    weights = (
        from_transformers(read_weights(folder / EXPORTED_WEIGHTS))
        if file is None
        else convert_to_custom_text_state_dict(read_weights(file))
    )
    load_weights(towers, weights, source=name, ignored=_UNUSED)
    preprocess = {key: value for key, value in images.items() if key in _PREPROCESS_KEYS}
    return Towers(towers, _tokenizer(folder, name, config), config, preprocess)


def random_towers(settings: RandomInitSettings, texts: Iterable[str]) -> Towers:
    """Return towers with random weights from the global torch seed."""
    tokenizer = scratch_tokenizer(settings, texts)
    config = _supported(scratch_config(settings, num_tokens=len(tokenizer.tokenizer)), "random_init")
    return Towers(_build(config, "random_init"), tokenizer, config, scratch_preprocess(settings))


def with_image_tower(towers: Towers, settings: ImageTowerSettings) -> Towers:
    """Return the towers with an image tower of timm and, by default, a new linear layer to the embedding.

    Raise MucoError if timm has no such tower, its features are not of the embedding's size and there is no
    linear layer, or the folder is not in timm's layout, DataError if a weight of it does not fit.
    """
    from open_clip.timm_model import TimmModel

    vision: dict[str, Any] = {
        "timm_model_name": settings.name,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    dim = towers.model_config["embed_dim"]
    try:
        visual: Any = TimmModel(settings.name, embed_dim=dim, pool="", proj="linear")
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise MucoError(f"backbone.image_tower.name: timm cannot build {settings.name!r}: {error}") from error
    if settings.projection == "none":
        # Without a layer, open_clip drops the tower's own pooling unless it is named.
        vision |= {"timm_pool": _pooling(visual.trunk, dim), "timm_proj": "none"}
        visual.head = nn.Sequential()
    info, preprocess = dict(visual.trunk.pretrained_cfg), towers.preprocess
    if settings.pretrained is not None:
        folder = Path(expanduser(settings.pretrained))
        info |= _read_json(folder / "config.json", settings.pretrained).get("pretrained_cfg", {})
        _load_trunk(visual.trunk, info, folder)
        preprocess = {key: info[key] for key in ("mean", "std", "interpolation")}
    visual.image_size = vision["image_size"] = tuple(info["input_size"][1:])
    towers.model.visual = visual
    return replace(towers, model_config={**towers.model_config, "vision_cfg": vision}, preprocess=preprocess)


def _pooling(trunk: Any, dim: int) -> str:
    """Return timm's name of the tower's pooling; raise MucoError unless its features have this size."""
    if trunk.num_features != dim:
        raise MucoError(
            f"backbone.image_tower.projection: none: the tower has {trunk.num_features} features, the "
            f"embedding has {dim}. Set `random_init.embedding_dim: {trunk.num_features}`, or "
            "`projection: linear`"
        )
    pool: Any = getattr(trunk, "global_pool", None) or trunk.head.global_pool
    return getattr(pool, "pool_type", pool)


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, source: str, ignored: Collection[str] = ()
) -> None:
    """Load weights of a source into a module; raise DataError if any but the ignored ones do not fit."""
    own = module.state_dict()
    message = f"{source}: the weights do not fit the model that its configuration describes"
    check_fit(weights, own, message, ignored=ignored)
    fits = {name for name in own.keys() & weights.keys() if own[name].shape == weights[name].shape}
    module.load_state_dict({name: weights[name] for name in fits}, strict=False)


def folder_of(name: str) -> Path:
    """Return the folder of that name, or of the downloaded `hf-hub:` repository.

    Raise MucoError if it does not exist or cannot be downloaded.
    """
    if not name.startswith(HUB):
        folder = Path(expanduser(name))
        if not folder.is_dir():
            raise MucoError(f"backbone.pretrained: {name} is not a folder; names of the hub begin with {HUB}")
        refuse_special_files(folder)
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = [CONFIG_FILE, *WEIGHT_FILES, FUSION_FILE, ADAPTER_FILE, PEFT_FILE, "config.json"]
    files += ["*token*", "vocab*", "merges.txt", "*.model"]
    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=files))
    except (OSError, HFValidationError) as error:
        raise MucoError(f"backbone.pretrained: {name} cannot be loaded: {error}") from error


def local_sizes(name: str) -> dict[str, Any] | None:
    """Return the `model_cfg` of a folder in open_clip's layout; None if there is no such folder.

    Raise MucoError if the folder has no `model_cfg`.
    """
    folder = Path(expanduser(name))
    if not folder.is_dir():
        return None
    model = _read_json(folder / CONFIG_FILE, name).get("model_cfg")
    if not isinstance(model, dict):
        raise MucoError(f"{name}: {CONFIG_FILE} must hold model_cfg")
    return model


def _read_json(path: Path, name: str) -> dict[str, Any]:
    with library_errors(f"{name}: {path.name} cannot be read"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise MucoError(f"{name}: {path.name} must hold a JSON object")
    return content


def _supported(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the `model_cfg` as `CustomTextCLIP` takes it; raise MucoError if it is not supported."""
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise MucoError(f"{name}: text_cfg and vision_cfg of {CONFIG_FILE} must be objects")
    unknown = sorted(set(text.get("tokenizer_kwargs", {})) - set(_TOKENIZER_SETTINGS))
    unsupported = {
        "a captioning decoder (CoCa)": "multimodal_cfg" in config,
        "a text tower of transformers": bool(text.get("hf_model_name")),
        f"tokenizer mode {text.get('tokenizer_mode')!r}": bool(text.get("tokenizer_mode")),
        f"tokenizer settings {', '.join(unknown)}": bool(unknown),
    }
    for feature, is_there in unsupported.items():
        if is_there:
            raise MucoError(f"{name} has {feature}, which clip does not support")
    # Without download: the weights come from the folder.
    vision = {**vision, "timm_model_pretrained": False, "output_tokens": False}
    text = {**text, "output_tokens": False}
    rest = {key: value for key, value in config.items() if key != "custom_text"}
    return {**rest, "vision_cfg": vision, "text_cfg": text}


def _build(config: dict[str, Any], name: str) -> Any:
    from open_clip.model import CustomTextCLIP

    with library_errors(f"{name}: {CONFIG_FILE} does not describe a model of open_clip"):
        return CustomTextCLIP(**config)


def _tokenizer(folder: Path, name: str, config: dict[str, Any]) -> Any:
    import open_clip

    # CLIP's own tokenizer has no such setting.
    is_of_transformers = bool(config["text_cfg"].get("hf_tokenizer_name"))
    settings: dict[str, Any] = {"trust_remote_code": False} if is_of_transformers else {}
    with library_errors(f"{name}: its tokenizer cannot be loaded"):
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}", **settings)
    if getattr(getattr(tokenizer, "tokenizer", None), "padding_side", "right") != "right":
        raise MucoError(f"{name} has a tokenizer that pads on the left, which clip does not support")
    return tokenizer


def _load_trunk(trunk: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Load the weights of a timm tower, without its classifier."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise MucoError(f"backbone.image_tower.pretrained: {folder} has no model.safetensors")
    heads = info.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    ignored = [f"{head}.{part}" for head in heads for part in ("weight", "bias")]
    load_weights(trunk, read_weights(file), source=str(folder), ignored=ignored)

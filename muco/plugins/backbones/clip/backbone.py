"""The dual encoder: an image tower and a text tower, combined for each turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from muco.core.component import Feature
from muco.core.errors import MucoError, library_errors
from muco.core.exported import Exported, PooledState
from muco.core.layers import ModelLayers
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.checkpoint import check_fit, dtype_of, read_weights
from muco.plugins.backbones.clip.export import export_towers
from muco.plugins.backbones.clip.fusion import FusionName, make_fusion
from muco.plugins.backbones.clip.image_cache import ImageCache
from muco.plugins.backbones.clip.layers import clip_layers
from muco.plugins.backbones.clip.lora_attention import (
    called_layers,
    close_attention,
    closed_names,
    open_attention,
    uncalled_layers,
)
from muco.plugins.backbones.clip.processor import ClipProcessor
from muco.plugins.backbones.clip.random_init import RandomInitSettings, scratch_config
from muco.plugins.backbones.clip.texts import TextReader
from muco.plugins.backbones.clip.towers import (
    CONFIG_FILE,
    EXPORTED_FUSION,
    FUSION_FILE,
    ImageTowerSettings,
    Towers,
    folder_of,
    local_sizes,
    random_towers,
    read_towers,
    with_image_tower,
)
from muco.plugins.backbones.lora import AdaptedSettings, AdapterSettings, last_parts
from muco.plugins.backbones.lora_backbone import AdaptedBackbone

_PIXELS_PER_PATCH = 16 * 16
"""For the cost of a convolutional tower, which has no patches."""


class Clip(AdaptedBackbone):
    """CLIP, SigLIP and similar models of open_clip: each turn has one state, made of its image and its text.

    References:
        Radford et al. 2021, arXiv:2103.00020: CLIP.
        Wei et al. 2023, arXiv:2311.17136: one embedding of image and text from two towers.
        Zhai et al. 2022, arXiv:2111.07991: LiT, a frozen image tower and a trained text tower.
    """

    class Config(AdaptedSettings):
        pretrained: str | None = None
        """Folder with `open_clip_config.json` and safetensors weights, or `hf-hub:` and a name."""
        random_init: RandomInitSettings | None = None
        """Instead of `pretrained`: random weights, and a tokenizer trained on the training texts."""
        image_tower: ImageTowerSettings | None = None
        """Replace the image tower by one of timm."""
        fusion: FusionName = "sum"
        """How a turn's image and text, as unit vectors, are combined. sum: weighted sum. learned_sum: the
        weight is learned. mlp: the weighted sum plus the output of a small network."""
        image_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """Weight of the image in the sum; the text has 1 minus this."""
        fusion_dim: PositiveInt = 512
        """Hidden size of the network of `fusion: mlp`."""
        truncate: bool = False
        """Cut and count texts longer than the text tower's context; otherwise they are errors."""
        dtype: Literal["float32", "bfloat16"] = "float32"
        """Dtype of the towers' weights."""
        gradient_checkpointing: bool = False
        """Recompute activations in the backward pass: a third more compute, a fraction of the memory."""
        adapter: AdapterSettings | None = None
        """Freeze the towers and train LoRA adapters on the text tower. The fusion and the new linear layer of
        an `image_tower` are trained."""
        freeze_vision: bool | None = None
        """Freeze the image tower: its features are computed once a step, without gradient. The new linear
        layer of an `image_tower` is trained. null: frozen if there is an adapter. false with an adapter: the
        whole tower is trained."""
        freeze_text: bool = False
        """Freeze the text tower."""
        image_cache: PositiveInt | None = None
        """With a frozen image tower: compute the features of this many images once, and keep them in memory.
        Further images are encoded at each use. null: every image is."""

        @model_validator(mode="after")
        def _settings_fit(self) -> Clip.Config:
            if (self.pretrained is None) == (self.random_init is None):
                raise ValueError("give either `pretrained` or `random_init`, not both or neither")
            if self.pretrained is not None and self.image_tower and self.image_tower.pretrained is None:
                raise ValueError(
                    "an `image_tower` with `pretrained` needs its own weights: `image_tower.pretrained`"
                )
            if self.adapter is not None and self.freeze_text:
                raise ValueError(
                    "`adapter` puts adapters on a frozen text tower; leave `freeze_text` at false"
                )
            if self.image_cache is not None and not self.image_features_are_fixed:
                raise ValueError(
                    "`image_cache` keeps the features of a frozen image tower: set `freeze_vision: true`, "
                    "without `adapter.vision`"
                )
            return self

        @property
        def image_features_are_fixed(self) -> bool:
            """Whether no weight of the image tower is trained, adapters included."""
            return self.vision_is_frozen and not (self.adapter is not None and self.adapter.vision)

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"isolated_turns", "image_targets"})

    @classmethod
    def hidden_dim_of(cls, config: Any) -> int | None:
        return config.random_init and config.random_init.embedding_dim

    @classmethod
    def sizes_of(cls, config: Any) -> Mapping[str, Any] | None:
        if config.random_init is not None:
            return scratch_config(config.random_init, num_tokens=config.random_init.vocab_size)
        return local_sizes(config.pretrained)

    @classmethod
    def layers_of(cls, config: Any, sizes: Mapping[str, Any]) -> ModelLayers | None:
        return clip_layers(config, sizes)

    def __init__(self, towers: Towers, config: Config) -> None:
        super().__init__(towers.model.to(dtype_of(config.dtype)))
        self.config = config
        self.towers = towers
        self.sizes = towers.model_config
        self.hidden_dim = towers.model_config["embed_dim"]
        self.fusion = make_fusion(
            config.fusion, dim=self.hidden_dim, hidden_dim=config.fusion_dim, image_weight=config.image_weight
        )
        self.processor: ClipProcessor = _processor(towers, config)
        self.image_cache = None if config.image_cache is None else ImageCache(config.image_cache)
        if not self.processor.texts.full_context:
            self.model.text.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)
        if config.gradient_checkpointing:
            self.model.text.set_grad_checkpointing()
            if not config.vision_is_frozen:
                _checkpoint_gradients(self._trunk)

    @classmethod
    def build(cls, config: Config, *, texts: Iterable[str]) -> Self:
        folder = None if config.pretrained is None else folder_of(config.pretrained)
        if config.random_init is not None:
            towers = random_towers(config.random_init, texts)
        else:
            assert config.pretrained is not None
            towers = read_towers(config.pretrained)
        if config.image_tower is not None:
            towers = with_image_tower(towers, config.image_tower)
        backbone = cls(towers, config)
        files = (FUSION_FILE, EXPORTED_FUSION)
        if folder is not None and any((folder / file).is_file() for file in files):
            backbone._load_fusion(folder)
        return backbone.set_up(config, start=None if folder is None else str(folder))

    @classmethod
    def load(cls, config: Config, folder: Path) -> Self:
        backbone = cls(read_towers(str(folder)), config).set_up(config)
        backbone._load_fusion(folder)
        backbone.read_adapter(folder)
        return backbone

    def save(self, folder: Path) -> None:
        self.towers.save(folder, closed_names(self.model, self.save_weights(folder)))
        if weights := self.fusion.state_dict():
            save_file(weights, folder / FUSION_FILE, metadata={"format": "pt"})

    def export(self, folder: Path, *, system: str, pooled: PooledState) -> Exported:
        """Write the towers. A turn has one state, so every pooler is the same; a system text is not read."""
        exported = export_towers(self.towers, closed_names(self.model, self.save_weights(folder)), folder)
        if weights := self.fusion.state_dict():
            file = folder / EXPORTED_FUSION
            file.parent.mkdir()
            save_file(weights, file, metadata={"format": "pt"})
        return exported

    def adaptable(self, settings: AdapterSettings) -> dict[nn.Module, list[str]]:
        examples = {self.model.text: self.processor.texts.rows(["a"])}
        if settings.vision:
            size = _image_size(self.model.visual)
            examples[self._trunk] = torch.zeros(1, 3, *size, dtype=self._image_dtype)
        layers = dict[nn.Module, list[str]]()
        for tower, example in examples.items():
            open_attention(tower)
            layers[tower] = called_layers(tower, example)
        if not layers.get(self._trunk, True):
            raise MucoError(
                "backbone.adapter.vision: this image tower has no linear layer that can have adapters. Set "
                "`adapter.vision: false`; with `freeze_vision: false` the whole tower is trained."
            )
        uncalled = [name for tower, names in layers.items() for name in uncalled_layers(tower, names)]
        if uncalled and settings.targets is None:
            allowed = ", ".join(last_parts(name for names in layers.values() for name in names))
            raise MucoError(
                f"backbone.adapter: {', '.join(last_parts(uncalled))} of these towers cannot have adapters. "
                f"Name the linear layers that can: `adapter.targets: [{allowed}]`"
            )
        return layers

    def frozen(self, config: Config) -> Iterable[nn.Parameter]:
        # The scale of CLIP's own loss is not used: our losses have a temperature.
        yield from (weight for name, weight in self.model.named_parameters() if name.startswith("logit_"))
        if config.vision_is_frozen:
            yield from self.image_parameters() if config.image_tower else self.model.visual.parameters()
        if config.freeze_text:
            yield from self.model.text.parameters()

    def merge_adapters(self) -> None:
        super().merge_adapters()
        close_attention(self.model)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen towers and batch norms stay in eval mode.

        With batch statistics, an embedding would depend on the other images of its chunk.
        """
        super().train(mode)
        fixed = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        fixed += [self._trunk] if self.config.image_features_are_fixed else []
        fixed += [self.model.text] if self.config.freeze_text else []
        for module in fixed:
            module.eval()
        return self

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors, num_turns = inputs.tensors, len(inputs.ids)
        parts: list[Tensor] = []
        if "input_ids" in tensors:
            text_RD = _unit(self.model.text(tensors["input_ids"]))
            parts.append(_sum_by_turn(text_RD, tensors["text_turn"], tensors["text_row"], num_turns))
        features = images or self.encode_images(inputs)
        if features is not None:
            visual: Any = self.model.visual
            image_RD = features.tensors[0]
            # open_clip's linear layer of a timm tower is trained, so it is not part of `encode_images`.
            image_RD = _unit(visual.head(image_RD) if hasattr(visual, "trunk") else image_RD)
            image_ND = _sum_by_turn(image_RD, tensors["image_turn"], tensors["image_row"], num_turns)
            parts.append(_unit(image_ND))
        hidden_ND = sum(parts[1:], parts[0])
        if "both" in tensors:
            text_QD, image_QD = (part[tensors["both"]] for part in parts)
            fused_QD = self.fusion(image_QD, text_QD)
            hidden_ND = hidden_ND.index_copy(0, tensors["both"], fused_QD.to(hidden_ND.dtype))
        return TurnStates(hidden=hidden_ND, spans=inputs.spans, ids=inputs.ids)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        if "pixel_values" not in inputs.tensors:
            return None
        pixels = inputs.tensors["pixel_values"].to(self._image_dtype)
        if self.image_cache is None:
            return ImageFeatures(tensors=(self._trunk(pixels),))
        features = self.image_cache.encode(self._trunk, pixels, inputs.tensors["image_ids"])
        return ImageFeatures(tensors=(features,))

    def image_parameters(self) -> Iterable[nn.Parameter]:
        return self._trunk.parameters()

    @property
    def _trunk(self) -> nn.Module:
        """The image tower, without the linear layer that open_clip adds to a timm one."""
        visual: Any = self.model.visual
        return getattr(visual, "trunk", visual)

    @property
    def _image_dtype(self) -> torch.dtype:
        return next(self._trunk.parameters()).dtype

    def _load_fusion(self, folder: Path) -> None:
        file = folder / FUSION_FILE
        if (folder / EXPORTED_FUSION).is_file():
            file = folder / EXPORTED_FUSION
        weights = read_weights(file) if file.is_file() else {}
        message = f"{file}: not made by `fusion: {self.config.fusion}` of these settings"
        check_fit(weights, self.fusion.state_dict(), message)
        self.fusion.load_state_dict(weights)


def _processor(towers: Towers, config: Clip.Config) -> ClipProcessor:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    visual, text = towers.model.visual, towers.model.text
    with library_errors(f"preprocess_cfg of {CONFIG_FILE} cannot be used"):
        preprocess = PreprocessCfg(**{**towers.preprocess, "size": visual.image_size})
        transform: Any = image_transform_v2(preprocess, is_train=False)
        transform(Image.new("RGB", (8, 8)))
    # A causal tower that takes its state at the end of the text does not read the padding.
    skips_padding = text.attn_mask is not None and text.cls_emb is None and text.pool_type != "last"
    texts = TextReader(towers.tokenizer, full_context=not skips_padding, truncate=config.truncate)
    return ClipProcessor(texts, transform, patches_per_image=_num_patches(visual))


def _checkpoint_gradients(trunk: Any) -> None:
    try:
        trunk.set_grad_checkpointing()
    except AssertionError:  # raised by timm
        raise MucoError(
            "backbone.gradient_checkpointing: this image tower does not support it. Set it to false, or "
            "freeze the tower by `freeze_vision: true`."
        ) from None


def _image_size(visual: Any) -> tuple[int, int]:
    """Return height and width of the tower's images in pixels."""
    size = visual.image_size
    return tuple(size) if isinstance(size, tuple | list) else (size, size)


def _num_patches(visual: Any) -> int:
    """Return the patches of an image, or an equivalent number for a tower without patches."""
    if hasattr(visual, "grid_size"):
        return visual.grid_size[0] * visual.grid_size[1]
    embed: Any = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    if getattr(embed, "num_patches", None):
        return embed.num_patches
    height, width = _image_size(visual)
    return -(-height * width // _PIXELS_PER_PATCH)


def _cut_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut the causal mask from the context's length, which open_clip gives it, to that of the texts."""
    length = args[0].shape[1]
    return args, {**kwargs, "attn_mask": kwargs["attn_mask"][:length, :length]}


def _sum_by_turn(rows_RD: Tensor, turn: Tensor, row: Tensor, num_turns: int) -> Tensor:
    """Return [num_turns, D], the sum of each turn's rows; zero for a turn without rows."""
    return rows_RD.new_zeros(num_turns, rows_RD.shape[1]).index_add(0, turn, rows_RD[row])


def _unit(rows: Tensor) -> Tensor:
    """Return the rows at unit length, at least float32; a row of zeros stays zero."""
    return nn.functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)

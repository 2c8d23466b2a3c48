"""The dual encoder: an image tower and a text tower, joined turn by turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from muco.core.component import Feature
from muco.core.errors import MucoError
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.checkpoint import check_fit, read_weights
from muco.plugins.backbones.clip.fusion import FusionName, make_fusion
from muco.plugins.backbones.clip.lora_attention import (
    called_maps,
    close_attention,
    closed_maps,
    closed_names,
    open_attention,
)
from muco.plugins.backbones.clip.processor import ClipProcessor
from muco.plugins.backbones.clip.random_init import RandomInitSettings
from muco.plugins.backbones.clip.texts import TextReader
from muco.plugins.backbones.clip.towers import (
    FUSION_FILE,
    ImageTowerSettings,
    Towers,
    folder_of,
    random_towers,
    read_towers,
    with_image_tower,
)
from muco.plugins.backbones.lora import AdaptedSettings, AdapterSettings, ends_of
from muco.plugins.backbones.lora_backbone import AdaptedBackbone

_PIXELS_A_PATCH = 16 * 16
"""Of a convolutional tower, which has no patches."""


class Clip(AdaptedBackbone):
    """CLIP, SigLIP and their kin from open_clip: each turn is one state, made of its image and its text.

    References:
        Radford et al. 2021, arXiv:2103.00020: CLIP.
        Wei et al. 2023, arXiv:2311.17136: one embedding of image and text from two towers.
    """

    class Config(AdaptedSettings):
        pretrained: str | None = None
        """Folder with `open_clip_config.json` and its safetensors, or `hf-hub:` and a name."""
        random_init: RandomInitSettings | None = None
        """Random weights of this size instead, and a tokenizer trained on the training texts."""
        image_tower: ImageTowerSettings | None = None
        """An image tower of timm beside the text tower; a new linear map joins it."""
        fusion: FusionName = "sum"
        """Of a turn's image and text, unit vectors: their weighted sum, one whose weight is learned, or the
        sum and a small network's answer to both."""
        image_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """Of the image in the sum; the text has the rest."""
        fusion_dim: PositiveInt = 512
        """Hidden size of the network of `fusion: mlp`."""
        truncate: bool = False
        """Cut texts that are longer than the text tower's context and count them; else they are errors."""
        dtype: Literal["float32", "bfloat16"] = "float32"
        """Of the towers' weights."""
        gradient_checkpointing: bool = False
        """Keep each layer's input alone and compute the layer again on the way back: a third more work, a
        fraction of the memory."""
        adapter: AdapterSettings | None = None
        """Train low-rank adapters on the text tower, and leave the towers' weights as they are; the fusion,
        and the new linear map beside an `image_tower`, are trained whole."""
        freeze_vision: bool | None = None
        """Leave the image tower as it is: its features are computed once a step, without gradient. The new
        linear map beside an `image_tower` is trained. null: where there is an adapter. false beside an
        adapter: the whole tower is trained."""
        freeze_text: bool = False
        """Leave the text tower as it is."""

        @model_validator(mode="after")
        def _one_origin(self) -> Clip.Config:
            if (self.pretrained is None) == (self.random_init is None):
                raise ValueError("give either `pretrained` or `random_init`, not both or neither")
            if self.pretrained is not None and self.image_tower and self.image_tower.pretrained is None:
                raise ValueError(
                    "an `image_tower` beside `pretrained` needs weights of its own: `image_tower.pretrained`"
                )
            if self.adapter is not None and self.freeze_text:
                raise ValueError(
                    "`adapter` trains adapters on a text tower that is frozen; leave `freeze_text` at false"
                )
            return self

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"isolated_turns", "image_targets"})

    def __init__(self, towers: Towers, config: Config) -> None:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        super().__init__(towers.model.to(dtype))
        self.config = config
        self.towers = towers
        self.hidden_dim = towers.model_config["embed_dim"]
        self.fusion = make_fusion(
            config.fusion, dim=self.hidden_dim, hidden_dim=config.fusion_dim, image_weight=config.image_weight
        )
        self.processor: ClipProcessor = _processor(towers, config)
        if not self.processor.texts.full_context:
            self.model.text.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)
        if config.gradient_checkpointing:
            self.model.text.set_grad_checkpointing()
            if not config.vision_is_frozen:
                _checkpoint_activations(self._trunk)

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
        if folder is not None and (folder / FUSION_FILE).is_file():
            backbone._read_fusion(folder)
        return backbone.set_up(config, start=None if folder is None else str(folder))

    @classmethod
    def load(cls, config: Config, folder: Path) -> Self:
        backbone = cls(read_towers(str(folder)), config).set_up(config)
        backbone._read_fusion(folder)
        backbone.read_adapter(folder)
        return backbone

    def save(self, folder: Path) -> None:
        self.towers.save(folder, closed_names(self.model, self.save_weights(folder)))
        if weights := self.fusion.state_dict():
            save_file(weights, folder / FUSION_FILE, metadata={"format": "pt"})

    def adaptable(self, settings: AdapterSettings) -> dict[nn.Module, list[str]]:
        examples = {self.model.text: self.processor.texts.rows(["a"])}
        if settings.vision:
            examples[self._trunk] = self._blank_image()
        found = dict[nn.Module, list[str]]()
        for tower, example in examples.items():
            open_attention(tower)
            found[tower] = called_maps(tower, example)
        if not found.get(self._trunk, True):
            raise MucoError(
                "backbone.adapter.vision: this image tower has no linear map that adapters fit. "
                "`adapter.vision: false` leaves it as it is, `freeze_vision: false` then trains it whole."
            )
        closed = [name for tower, names in found.items() for name in closed_maps(tower, names)]
        if closed and settings.targets is None:
            ends = ", ".join(ends_of(name for names in found.values() for name in names))
            raise MucoError(
                f"backbone.adapter: adapters do not fit {', '.join(ends_of(closed))} of these towers. Name "
                f"linear maps that they fit: `adapter.targets: [{ends}]`"
            )
        return found

    def frozen(self, config: Config) -> Iterable[nn.Parameter]:
        # The scale of CLIP's own loss: ours has a temperature.
        yield from (weight for name, weight in self.model.named_parameters() if name.startswith("logit_"))
        if config.vision_is_frozen:
            yield from self.image_parameters() if config.image_tower else self.model.visual.parameters()
        if config.freeze_text:
            yield from self.model.text.parameters()

    def merge_adapters(self) -> None:
        super().merge_adapters()
        close_attention(self.model)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen towers stay as they are, and batch norms keep their statistics.

        A batch norm that learnt from its chunk would make an embedding depend on its neighbours.
        """
        super().train(mode)
        still = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        adapted = self.config.adapter is not None and self.config.adapter.vision
        still += [self._trunk] if self.config.vision_is_frozen and not adapted else []
        still += [self.model.text] if self.config.freeze_text else []
        for module in still:
            module.eval()
        return self

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors, num_turns = inputs.tensors, len(inputs.ids)
        parts: list[Tensor] = []
        if "input_ids" in tensors:
            text_RD = _unit(self.model.text(tensors["input_ids"]))
            parts.append(_spread(text_RD, tensors["text_turn"], tensors["text_row"], num_turns))
        features = images or self.encode_images(inputs)
        if features is not None:
            image_RD = _unit(self._projected(features.tensors[0]))
            mean_ND = _spread(image_RD, tensors["image_turn"], tensors["image_row"], num_turns)
            parts.append(_unit(mean_ND))
        hidden_ND = sum(parts[1:], parts[0])
        if "both" in tensors:
            text_QD, image_QD = (part[tensors["both"]] for part in parts)
            joined_QD = self.fusion(image_QD, text_QD)
            hidden_ND = hidden_ND.index_copy(0, tensors["both"], joined_QD.to(hidden_ND.dtype))
        return TurnStates(hidden=hidden_ND, spans=inputs.spans, ids=inputs.ids)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        if "pixel_values" not in inputs.tensors:
            return None
        pixels = inputs.tensors["pixel_values"].to(self._image_dtype)
        return ImageFeatures(tensors=(self._trunk(pixels),))

    def image_parameters(self) -> Iterable[nn.Parameter]:
        return self._trunk.parameters()

    @property
    def _trunk(self) -> nn.Module:
        """The image tower, without the linear map that open_clip puts behind a timm one."""
        visual: Any = self.model.visual
        return getattr(visual, "trunk", visual)

    @property
    def _image_dtype(self) -> torch.dtype:
        return next(self._trunk.parameters()).dtype

    def _blank_image(self) -> Tensor:
        """Return one image, [1, 3, height, width]."""
        size = self.model.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return torch.zeros(1, 3, height, width, dtype=self._image_dtype)

    def _read_fusion(self, folder: Path) -> None:
        file = folder / FUSION_FILE
        weights = read_weights(file) if file.is_file() else {}
        check_fit(
            weights,
            self.fusion.state_dict(),
            f"{file}: not made by `fusion: {self.config.fusion}` of these settings",
        )
        self.fusion.load_state_dict(weights)

    def _projected(self, features: Tensor) -> Tensor:
        visual: Any = self.model.visual
        return visual.head(features) if hasattr(visual, "trunk") else features


def _processor(towers: Towers, config: Clip.Config) -> ClipProcessor:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    visual, text = towers.model.visual, towers.model.text
    preprocess = PreprocessCfg(**{**towers.preprocess, "size": visual.image_size})
    transform: Any = image_transform_v2(preprocess, is_train=False)
    # A causal tower that reads its state at the end of the text never sees what comes after it.
    blind = text.attn_mask is not None and text.cls_emb is None and text.pool_type != "last"
    return ClipProcessor(
        TextReader(towers.tokenizer, full_context=not blind, truncate=config.truncate),
        transform,
        patches_per_image=_num_patches(visual),
    )


def _checkpoint_activations(trunk: Any) -> None:
    try:
        trunk.set_grad_checkpointing()
    except AssertionError:  # timm's way to say so
        raise MucoError(
            "backbone.gradient_checkpointing: this image tower keeps its activations; leave it at false, or "
            "`freeze_vision: true` leaves the tower without any"
        ) from None


def _num_patches(visual: Any) -> int:
    """Return the patches that an image takes in the tower, or what a tower without patches counts as."""
    if hasattr(visual, "grid_size"):
        return visual.grid_size[0] * visual.grid_size[1]
    embed: Any = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    if getattr(embed, "num_patches", None):
        return embed.num_patches
    size = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return -(-height * width // _PIXELS_A_PATCH)


def _cut_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut the causal mask to the length of the texts; open_clip gives it the length of the context."""
    length = args[0].shape[1]
    return args, {**kwargs, "attn_mask": kwargs["attn_mask"][:length, :length]}


def _spread(rows_RD: Tensor, turn: Tensor, row: Tensor, num_turns: int) -> Tensor:
    """Return [num_turns, D]: the sum of each turn's rows, zero where it has none."""
    return rows_RD.new_zeros(num_turns, rows_RD.shape[1]).index_add(0, turn, rows_RD[row])


def _unit(rows: Tensor) -> Tensor:
    """Return the rows at unit length, float32 or finer; zero stays zero."""
    return nn.functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)

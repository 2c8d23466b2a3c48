"""The LLaVA backbone, built from the classes of transformers, without the language-model head."""

from muco.plugins.backbones.llava.backbone import Llava

__all__ = ["Llava"]

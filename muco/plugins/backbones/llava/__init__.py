"""LLaVA as a backbone: the classes of the installed transformers, without the language-model head."""

from muco.plugins.backbones.llava.backbone import Llava

__all__ = ["Llava"]

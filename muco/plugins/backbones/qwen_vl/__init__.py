"""Qwen2-VL as a backbone: the classes of the installed transformers, without the language-model head."""

from muco.plugins.backbones.qwen_vl.backbone import QwenVL

__all__ = ["QwenVL"]

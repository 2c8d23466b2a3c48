"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL by the installed transformers, without the language-model head."""

from muco.plugins.backbones.qwen_vl.backbone import QwenVL

__all__ = ["QwenVL"]

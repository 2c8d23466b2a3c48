"""Idefics3 by the installed transformers, without the language-model head."""

from muco.plugins.backbones.idefics.backbone import Idefics

__all__ = ["Idefics"]

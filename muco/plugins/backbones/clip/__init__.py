"""CLIP as a backbone: the towers of the installed open_clip and timm, side by side."""

from muco.plugins.backbones.clip.backbone import Clip

__all__ = ["Clip"]

"""The CLIP backbone, built from the towers of open_clip and timm."""

from muco.plugins.backbones.clip.backbone import Clip

__all__ = ["Clip"]

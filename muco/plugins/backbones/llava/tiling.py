"""How many pictures an image becomes for the vision tower, and how many tokens for the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from muco.core.errors import DataError, MucoError
from muco.plugins.backbones.aspect_ratio import refuse_elongated


@dataclass(frozen=True)
class Tiling:
    """Of one model. LLaVA-1.5 sees an image as one picture. Its successors see it small and whole, then as
    tiles of a grid, the border that fills the grid left out, each row of patches ended by a token of its own.

    References:
        Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next: any resolution.
        Li et al. 2024, arXiv:2408.03326: LLaVA-OneVision, fewer tokens beyond a number of tiles.
    """

    side_pixels: int
    """Of a tile."""
    side_patches: int
    """Of a tile."""
    tile_tokens: int
    """Of one picture."""
    grids: tuple[tuple[int, int], ...] = ()
    """Heights and widths in pixels; none where an image is not cut."""
    max_area_tiles: int | None = None
    """Tokens of more tiles than this are interpolated down to about this many."""
    only_alone: bool = False
    """Whether images that are shown together stay whole."""
    frame_tokens: int | None = None
    """Of a frame of a video: of four patches in a square one token; None where no video is read."""

    @classmethod
    def of(cls, config: Any) -> Tiling:
        """Return what a transformers model of this configuration does.

        Raises:
            MucoError: a vision tower or a choice of its features that is not of these families.
        """
        vision, family = config.vision_config, config.model_type
        towers = {"clip_vision_model": 1, "siglip_vision_model": 0}
        if vision.model_type not in towers:
            raise MucoError(f"backbone: llava takes {', '.join(towers)}, not a {vision.model_type}")
        side = vision.image_size // vision.patch_size
        tokens = side**2 + towers[vision.model_type] - (config.vision_feature_select_strategy == "default")
        if family == "llava":
            return cls(vision.image_size, side, tokens)
        if tokens != side**2:
            raise MucoError(
                f"backbone: {family} needs one feature a patch; the {vision.model_type} gives {tokens} for "
                f"{side**2} with vision_feature_select_strategy: {config.vision_feature_select_strategy}"
            )
        grids = tuple((height, width) for height, width in config.image_grid_pinpoints)
        if any(height % vision.image_size or width % vision.image_size for height, width in grids):
            raise MucoError(f"backbone: image_grid_pinpoints are not multiples of {vision.image_size} pixels")
        if family == "llava_next":
            return cls(vision.image_size, side, tokens, grids)
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        frame_tokens = math.ceil(side / 2) ** 2
        return cls(vision.image_size, side, tokens, grids, most, only_alone=True, frame_tokens=frame_tokens)

    def num_tiles(self, height: int, width: int, *, alone: bool) -> int:
        """Return how many pictures an image of that size in pixels becomes.

        Args:
            height: of the image.
            width: of the image.
            alone: whether no other image is shown with it.

        Raises:
            DataError: an image too elongated.
        """
        refuse_elongated(width, height)
        if not self.grids or (self.only_alone and not alone):
            return 1
        rows, columns = self._grid(height, width)
        return 1 + rows * columns

    def num_tokens(self, height: int, width: int, num_tiles: int) -> int:
        """Return how many tokens an image of that size has, cut into so many pictures."""
        if not self.grids:
            return self.tile_tokens
        if num_tiles == 1:
            return self.tile_tokens + 1
        rows, columns = self._unpadded(height, width)
        if self.max_area_tiles is not None:
            ratio = math.sqrt(rows * columns / (self.max_area_tiles * self.side_patches**2))
            if ratio > 1.1:
                rows, columns = int(rows // ratio), int(columns // ratio)
        return self.tile_tokens + rows * (columns + 1)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of tiles."""
        from transformers.image_processing_utils import select_best_resolution

        best = select_best_resolution((height, width), list(self.grids))
        if best is None:
            raise DataError(f"image of {width} x {height} pixels: no grid of tiles fits")
        return best[0] // self.side_pixels, best[1] // self.side_pixels

    def _unpadded(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches that the image fills, rounded as transformers rounds."""
        rows, columns = (tiles * self.side_patches for tiles in self._grid(height, width))
        if width / height > columns / rows:
            filled = int(round(height * (columns / width), 7))
            return rows - (rows - filled) // 2 * 2, columns
        filled = int(round(width * (rows / height), 7))
        return rows, columns - (columns - filled) // 2 * 2

"""The number of pictures of an image for the vision tower, and of its tokens for the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from muco.core.errors import MucoError, library_errors
from muco.plugins.backbones.aspect_ratio import refuse_elongated


@dataclass(frozen=True)
class Tiling:
    """The tiling of one model. LLaVA-1.5 reads an image as one picture. Later models read the whole image,
    reduced, then the tiles of a grid without the padding that fills it; a token ends each row of patches.

    References:
        Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next: any resolution.
        Li et al. 2024, arXiv:2408.03326: LLaVA-OneVision, fewer tokens beyond a number of tiles.
    """

    side_pixels: int
    """Side of a tile."""
    side_patches: int
    tile_tokens: int
    """Tokens of one picture."""
    grids: tuple[tuple[int, int], ...] = ()
    """Heights and widths in pixels; empty if images are not split."""
    max_area_tiles: int | None = None
    """The tokens of more tiles are interpolated down to about this number of tiles."""
    splits_only_single: bool = False
    """Whether images that are shown together are not split."""
    frame_tokens: int | None = None
    """Tokens of a video's frame, one per square of four patches; None if the model reads no videos."""

    @classmethod
    def of(cls, config: Any) -> Tiling:
        """Return the tiling of a transformers model with this configuration.

        Raise MucoError if the vision tower, or the selection of its features, is not one of these families'.
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
        frame = math.ceil(side / 2) ** 2
        return cls(vision.image_size, side, tokens, grids, most, splits_only_single=True, frame_tokens=frame)

    def num_tiles(self, height: int, width: int, *, is_only: bool) -> int:
        """Return the number of pictures of an image, size in pixels; raise DataError if it is too elongated.

        `is_only` says whether no other image is shown with it.
        """
        refuse_elongated(width, height)
        if not self.grids or (self.splits_only_single and not is_only):
            return 1
        rows, columns = self._grid(height, width)
        return 1 + rows * columns

    def num_tokens(self, height: int, width: int, num_tiles: int) -> int:
        """Return the number of tokens of an image of this size with `num_tiles` pictures."""
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
        best = max(self.grids, key=lambda grid: _fit(height, width, grid))
        return best[0] // self.side_pixels, best[1] // self.side_pixels

    def _unpadded(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches without padding, with the rounding of transformers."""
        rows, columns = (tiles * self.side_patches for tiles in self._grid(height, width))
        if width / height > columns / rows:
            filled = int(round(height * (columns / width), 7))
            return rows - (rows - filled) // 2 * 2, columns
        filled = int(round(width * (rows / height), 7))
        return rows, columns - (columns - filled) // 2 * 2


def _fit(height: int, width: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Return how well an image fits a grid: the pixels that are used of it, and minus those that are not.

    The rule of transformers, whose import alone takes seconds.
    """
    scale = min(grid[1] / width, grid[0] / height)
    used = min(int(width * scale) * int(height * scale), width * height)
    return used, used - grid[0] * grid[1]


def limited_grids(config: Any, max_tiles: int | None) -> list[list[int]]:
    """Return the grids of a model, height and width in pixels, that have at most so many tiles.

    Raise MucoError if it has none, or its configuration does not describe grids.
    """
    with library_errors("image_grid_pinpoints of the model are not pairs of height and width"):
        all_grids = [[int(height), int(width)] for height, width in config.image_grid_pinpoints]
    if max_tiles is None:
        return all_grids
    side = config.vision_config.image_size
    grids = [grid for grid in all_grids if grid[0] * grid[1] <= max_tiles * side**2]
    if not grids:
        raise MucoError(f"backbone.max_tiles: no grid of this model has at most {max_tiles} tiles")
    return grids

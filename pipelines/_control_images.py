"""How control images are brought to the size of a sample before any model looks at them."""

from __future__ import annotations

from typing import Any


def stretched(image: Any, width: int, height: int) -> Any:
    """A PIL image as RGB of that size in px, whatever its shape: bilinear, smoothed in shrinking.

    Alpha is dropped. One of that size is left as it is.
    """
    from PIL import Image

    image, size = image.convert("RGB"), (width, height)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def stretched_off_grid(image: Any, settings: Any) -> Any:
    """A PIL image as RGB in the size that the trainer's sample has before the model's grid."""
    sides = zip((settings.width, settings.height), settings.off_grid, strict=True)
    return stretched(image, *map(sum, sides))

"""Image files as sequences of patches, for classification."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ember_ml.data.features.arrays import ArraysConfig, ArraySource
from ember_ml.data.features.folders import labelled
from ember_ml.data.files import expand
from ember_ml.errors import ConfigError, DataError, MissingExtra
from ember_ml.registry import Rate, Size, config


@config
class ImagesConfig:
    """Images in folders by class (extra `vision`).

    Args:
        files: pattern such as "photos/*/*.jpg", or a list; the folder's name is the class.
        batch: images per update.
        height, width: pixels that every image is scaled to.
        patch: [height, width] of the pieces that are read one after the other, row by row; None for whole rows of pixels.
        color: three channels a pixel, else one.
        held_out: share to judge on, by hash of the pixels.
    """

    files: str | list[str]
    batch: Size
    height: Size
    width: Size
    patch: tuple[Size, Size] | None = None
    color: bool = False
    held_out: Rate = 0.2


def images_source(c: ImagesConfig, seed: int) -> ArraySource:
    """The source of a config; `class_names` are the folders. Raises ConfigError, DataError, MissingExtra."""
    patch = c.patch or (1, c.width)
    if c.height % patch[0] or c.width % patch[1]:
        raise ConfigError(f"images: expected a patch that divides height and width, {c.height} x {c.width}; received {list(patch)}")
    paths = expand(c.files)
    names, classes = labelled(paths)
    pixels = np.stack([read_image(p, c.height, c.width, c.color) for p in paths])
    source = ArraySource(ArraysConfig(batch=c.batch, held_out=c.held_out), seed, paths, {"x": as_patches(pixels, *patch), "y": classes})
    source.class_names = names
    return source


def read_image(path: Path, height: int, width: int, color: bool = False) -> np.ndarray:
    """An image file, uint8 (height, width, 3 or 1), scaled by averaging (Pillow's box filter). Needs Pillow.

    Raises MissingExtra without it, DataError for a file that is no image or cut short.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra(f'{path}: images are read by Pillow, which is not installed; run: pip install "ember-ml[vision]"') from None
    try:
        with Image.open(path) as image:
            made = image.convert("RGB" if color else "L").resize((width, height), Image.Resampling.BOX)
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:     # Pillow raises SyntaxError for broken headers
        raise DataError(f"{path}: cannot be read as an image ({e})") from None
    return np.asarray(made, np.uint8).reshape(height, width, -1)


def as_patches(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, H, W, C) as sequences (N, H/height W/width, height width C) of patches, row by row; the sides of a patch divide H and W."""
    n, h, w, c = images.shape
    cut = images.reshape(n, h // height, height, w // width, width, c)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, height * width * c)

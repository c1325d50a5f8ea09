"""Vision: images as sequences."""

from ember_ml.data.vision.images import ImagesConfig, as_patches, images_source, read_image

__all__ = ["ImagesConfig", "as_patches", "images_source", "read_image"]

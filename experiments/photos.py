"""Real images without a download: the two photos that ship with scikit-learn."""

import numpy as np


def photo_crops(batch: int, size: int) -> np.ndarray:
    """Returns normalized square crops of two photos, ``(batch, size, size, 3)``.

    The photos (a Chinese temple, a flower) are 427 x 640. Crops alternate between them;
    the first of each is at its centre, later ones walk along it. Each crop has zero
    mean and unit second moment in every channel, so that q_0 = 1, as the papers assume.

    Args:
        batch: Number of crops.
        size: Height and width; photos are enlarged where it exceeds 427.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    crops = []
    for i in range(batch):
        photo = photos[i % len(photos)]
        if size > min(photo.shape[:2]):
            factor = size / min(photo.shape[:2])
            shape = (round(photo.shape[1] * factor), round(photo.shape[0] * factor))
            photo = np.asarray(Image.fromarray(photo).resize(shape))
        free = np.array(photo.shape[:2]) - size
        walk = (0.5 + 0.618 * (i // len(photos))) % 1.0
        top, left = (free * walk).astype(int)
        crops.append(photo[top : top + size, left : left + size] / 255.0)
    x = np.stack(crops)
    x = x - x.mean(axis=(1, 2), keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=(1, 2), keepdims=True))
    return x.astype(np.float32)

"""scikit-learn's 1,797 handwritten digits as a TFDS data set; no download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.training import digits


class Digits(tfds.core.GeneratorBasedBuilder):
    """8 x 8 grey images of 17 levels, in the order and split of `training.digits`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical recognition of handwritten digits, test part.",
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        data = digits()
        return {
            "train": self._generate_examples(data.x, data.y),
            "test": self._generate_examples(data.x_test, data.y_test),
        }

    def _generate_examples(
        self, images: np.ndarray, classes: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        low, high = images.min(), images.max()
        for i, (image, label) in enumerate(zip(images[..., 0], classes)):
            levels = np.rint((image - low) / (high - low) * 255)  # 17 of them
            picture = Image.fromarray(levels.astype(np.uint8))
            yield i, {"image": picture, "label": int(label)}

"""Fungi10: ten kinds of fungi from iNaturalist 2019, as a TFDS data set [Henmi2020].

The paper names the data and the number of validation images, 512, and leaves open which
categories come first and how images are split. Both are fields of the configuration.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.inaturalist import (
    HOW_TO_GET,
    MD5,
    Images,
    corrupt,
    first_categories,
)
from layerwise.errors import InputError, message


ORDERS = {"number": int, "name": str}
SPLITS = ("random", "stratified")
Split = dict[str, list[tuple[str, str]]]
"""Name of a split -> category and name of its images."""


@dataclasses.dataclass
class Fungi10Config(tfds.core.BuilderConfig):
    """What the paper leaves open, and what to do with damaged files.

    Attributes:
        order: "First ten categories" by "number" (of the folder) or by "name".
        split: "random" over all images, or "stratified": a quarter of every category.
        seed: Of the split.
        corrupt: "fatal", or "skip", which names the images and leaves them out.
        md5: Of the archive; None accepts any.
    """

    name: str = ""  # made of the fields: each choice is prepared apart
    order: str = "number"
    split: str = "random"
    seed: int = 0
    corrupt: str = "fatal"
    md5: str | None = MD5

    def __post_init__(self) -> None:
        """Names the configuration."""
        self.name = f"{self.order}-{self.split}-{self.seed}-{self.corrupt}"


def split_images(images: Images, how: str, seed: int) -> Split:
    """Returns three quarters of the images for training and one for validation."""
    names = [[(c, name) for name in own] for c, own in images.items()]
    groups = names if how == "stratified" else [[x for own in names for x in own]]
    found: Split = {"train": [], "validation": []}
    for i, group in enumerate(groups):
        key = jax.random.fold_in(jax.random.key(seed), i)
        order = np.asarray(jax.random.permutation(key, len(group)))
        quarter = len(group) // 4
        found["validation"] += [group[j] for j in sorted(order[:quarter])]
        found["train"] += [group[j] for j in sorted(order[quarter:])]
    return found


def split_counts(split: Split) -> dict[str, dict[str, int]]:
    """Returns how many images of every category are in every split."""
    return {
        name: {c: sum(k == c for k, _ in own) for c in sorted({k for k, _ in own})}
        for name, own in split.items()
    }


class Fungi10(tfds.core.GeneratorBasedBuilder):
    """The first ten categories of Fungi, a quarter of the images for validation."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = HOW_TO_GET

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=10),
                "category": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Ten kinds of fungi, photos of 800 pixels at most.",
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://github.com/visipedia/inat_comp/tree/master/2019",
            license="Non-commercial research; no redistribution.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config: Any = self.builder_config
        images = first_categories(
            Path(dl_manager.manual_dir),
            "Fungi",
            10,
            order=ORDERS[config.order],
            md5=config.md5,
        )
        labels = {category: i for i, category in enumerate(images)}
        images = _without_corrupt(images, config.corrupt)
        split = split_images(images, config.split, config.seed)
        for name, counts in split_counts(split).items():
            print(f"fungi10 {name}: {sum(counts.values())} images, {counts}")
        return {
            name: self._generate_examples(own, images, labels)
            for name, own in split.items()
        }

    def _generate_examples(
        self, chosen: list[tuple[str, str]], images: Images, labels: dict[str, int]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for category, name in chosen:
            yield (
                f"{category}/{name}",
                {
                    "image": images[category][name](),
                    "label": labels[category],
                    "category": category,
                },
            )


def _without_corrupt(images: Images, what: str) -> Images:
    """Returns the images that can be decoded; raises if there are others."""
    bad = corrupt(images)
    if not bad:
        return images
    said = "; ".join(f"{c}/{n}: {why}" for (c, n), why in list(bad.items())[:10])
    found = f"{len(bad)} images cannot be decoded: {said}."
    if what != "skip":
        raise InputError(
            message(
                found,
                "The archive was damaged on its way, and counts would not be the "
                "paper's.",
                "Download it again, or leave them out with corrupt='skip'.",
            )
        )
    print(f"Left out: {found}")
    return {
        c: {n: read for n, read in own.items() if (c, n) not in bad}
        for c, own in images.items()
    }

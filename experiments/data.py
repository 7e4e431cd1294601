"""Images by the name of a TFDS data set, as arrays in memory; without TensorFlow."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments.launch import check_choices
from experiments.training import Data, digits
from layerwise.errors import InputError, InvalidArgumentError, message


OURS = ("digits", "fungi10")
FITS = ("squash", "crop")


def of_name(name: str, given: ConfigDict, size: int) -> Data:
    """Returns the data set that a configuration names.

    Args:
        name: "digits", "fungi10", or "tfds:NAME" for what lies prepared.
        given: `experiments.configs.tfds_fields`.
        size: Height and width of the images.

    Raises:
        InvalidArgumentError: If the data set is unknown.
        InputError: If its data is not there; the message says what to download.
    """
    if name == "digits":
        return digits(size, channels=3)
    if name not in OURS and not str(name).startswith("tfds:"):
        raise InvalidArgumentError(
            message(
                f"data={name!r}.",
                "The data sets are: digits (scikit-learn's, no download), fungi10, and "
                "tfds:NAME for what lies prepared in tfds.data_dir.",
                "Pass --config.data=digits.",
            )
        )
    name = name.removeprefix("tfds:")
    check_choices("tfds.fit", [given.fit], FITS)
    fields = {}
    if name == "fungi10":
        from experiments.datasets import fungi10

        check_choices("tfds.order", [given.order], fungi10.ORDERS)
        check_choices("tfds.split", [given.split], fungi10.SPLITS)
        check_choices("tfds.corrupt", [given.corrupt], ("fatal", "skip"))
        fields = {k: given[k] for k in ("order", "split", "corrupt")}
    builder = prepare(name, given.data_dir, given.manual_dir, **fields)
    return load(builder, size, fit=given.fit)


def builder_of(name: str, data_dir: str, **fields: Any) -> Any:
    """Returns the TFDS builder of a name: one of ours, or one that is prepared.

    Args:
        name: "digits", "fungi10", or any name whose data lies prepared in `data_dir`.
        data_dir: Where TFDS keeps prepared data.
        **fields: Of fungi10's configuration.

    Raises:
        InputError: If there is no such data set.
    """
    import tensorflow_datasets as tfds

    from experiments.datasets.digits import Digits
    from experiments.datasets.fungi10 import Fungi10, Fungi10Config

    if name == "digits":
        return Digits(data_dir=data_dir, file_format="array_record")
    if name == "fungi10":
        config = Fungi10Config(**fields)
        return Fungi10(config=config, data_dir=data_dir, file_format="array_record")
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # whatever TFDS says of a name that it does not know
        raise _unprepared(name, data_dir) from error
    if not builder.data_path.exists():
        raise _unprepared(name, data_dir)
    return builder


def _unprepared(name: str, data_dir: str) -> InputError:
    return InputError(
        message(
            f"TFDS has no prepared data set {name!r} in {data_dir}.",
            "Preparing one of its own needs TensorFlow; ours are digits, fungi10.",
            "Prepare it elsewhere with --file_format=array_record, and copy it.",
        )
    )


def prepare(name: str, data_dir: str, manual_dir: str | None, **fields: Any) -> Any:
    """Returns the builder of a data set whose data is there, writing it if it is not.

    Raises:
        InputError: If data that has to be downloaded by hand is not in `manual_dir`;
            the message says what to download.
    """
    import tensorflow_datasets as tfds

    from experiments.datasets.inaturalist import HOW_TO_GET

    builder = builder_of(name, data_dir, **fields)
    if builder.data_path.exists():
        return builder
    if name == "fungi10" and not (manual_dir and Path(manual_dir).is_dir()):
        raise InputError(
            message(
                f"fungi10 is not in {data_dir}, and manual_dir={manual_dir!r} is no "
                "folder.",
                "It is made from images that have to be downloaded by hand.",
                HOW_TO_GET,
            )
        )
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=config)
    return builder


def load(
    builder: Any, size: int, *, fit: str = "squash", test: str | None = None
) -> Data:
    """Returns the splits of a data set, as bytes.

    The scale gives the training images a second moment of one.

    Args:
        builder: From `prepare`.
        size: Height and width.
        fit: "squash" to a square, or "crop" its middle.
        test: The split to test on; the one that is not "train" if None.
    """
    names = [n for n in builder.info.splits if n != "train"]
    splits = [
        _arrays(builder.as_data_source(split=s), size, fit)
        for s in ("train", test or names[0])
    ]
    (x, y), (x_test, y_test) = splits
    counts = np.bincount(x.ravel(), minlength=256)
    levels = np.arange(256) / 127.5 - 1
    scale = np.sqrt(counts @ np.square(levels) / x.size)
    return Data(x, y, x_test, y_test, float(scale))


def _arrays(rows: Iterable[Any], size: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for row in rows:
        images.append(_square(row["image"], size, fit))
        labels.append(int(row["label"]))
    return np.stack(images), np.array(labels, np.int32)


def _square(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Returns a colour image of `size`, bilinearly resized."""
    picture = Image.fromarray(image.squeeze()).convert("RGB")
    if fit == "crop":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))

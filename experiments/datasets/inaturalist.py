"""iNaturalist 2019 as it is distributed: one archive, or the folder in it.

Images are ``train_val2019/<super category>/<category>/<image>.jpg``. The archive is
read once, front to back: it is compressed, and 74 GB long.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from layerwise.errors import InputError, message


ROOT = "train_val2019"
ARCHIVE = f"{ROOT}.tar.gz"
MD5 = "c60a6e2962c9b8ccbd458d12c8582644"
HOW_TO_GET = f"""\
Download {ARCHIVE} (74 GB, md5 {MD5}) from
https://ml-inat-competition-datasets.s3.amazonaws.com/2019/{ARCHIVE}
Its licence allows non-commercial research only, and no redistribution.
Put it, or the folder {ROOT} that is in it, into the folder that manual_dir names."""


Images = dict[str, dict[str, Callable[[], bytes]]]
"""Category -> name of an image -> what reads it."""


def first_categories(
    manual_dir: Path,
    group: str,
    count: int,
    *,
    order: Callable[[str], Any] = int,
    md5: str | None = MD5,
) -> Images:
    """Returns the images of the first categories of a super category.

    Args:
        manual_dir: Holds the archive, or the folder that is in it, which is preferred.
        group: The super category, such as "Fungi".
        count: Of categories.
        order: What categories are sorted by.
        md5: What the archive's checksum must be; None for any.

    Raises:
        InputError: If there is neither, or what is there is not whole.
    """
    folder, archive = manual_dir / ROOT, manual_dir / ARCHIVE
    if folder.is_dir():
        found = _from_folder(folder / group)
        kept = {c: found[c] for c in sorted(found, key=order)[:count]}
    elif archive.is_file():
        kept = _from_archive(archive, group, count, order, md5)
    else:
        raise InputError(
            message(
                f"There is neither {folder} nor {archive.name} in {manual_dir}.",
                "The images cannot be downloaded without agreeing to their licence.",
                HOW_TO_GET,
            )
        )
    if len(kept) < count or not all(kept.values()):
        empty = [c for c, images in kept.items() if not images]
        raise InputError(
            message(
                f"{manual_dir} has {len(kept)} categories of {group}"
                + (f", and no image in {', '.join(empty)}." if empty else "."),
                f"{count} with images are needed: this is not all of {ROOT}.",
                HOW_TO_GET,
            )
        )
    return kept


def _from_folder(folder: Path) -> Images:
    return {
        category.name: {
            path.name: path.read_bytes for path in sorted(category.glob("*.jpg"))
        }
        for category in folder.glob("*/")
    }


def _from_archive(
    archive: Path, group: str, count: int, order: Callable[[str], Any], md5: str | None
) -> Images:
    """Keeps the images of the categories that are among the first so far."""
    kept: Images = {}
    with archive.open("rb") as file:
        hashed = _Hashed(file)
        try:
            for category, name, data in _members(hashed, group):
                kept.setdefault(category, {})[name] = lambda data=data: data
                for late in sorted(kept, key=order)[count:]:
                    del kept[late]
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InputError(
                message(
                    f"{archive} cannot be read to its end: {error}.",
                    "It is truncated, or no gzipped tar.",
                    HOW_TO_GET,
                )
            ) from error
        got = hashed.finish()
    if md5 is not None and got != md5:
        raise InputError(
            message(
                f"{archive} has the md5 {got}.",
                f"It is not the archive of iNaturalist 2019, whose is {md5}.",
                HOW_TO_GET,
            )
        )
    return {c: dict(sorted(kept[c].items())) for c in sorted(kept, key=order)}


def _members(file: Any, group: str) -> Iterator[tuple[str, str, bytes]]:
    """Yields category, name and bytes of every image of a super category."""
    # tarfile's own gzip stream does not notice on every Python that the end is missing.
    with (
        gzip.GzipFile(fileobj=file) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|") as tar,
    ):
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and parts[:2] == (ROOT, group) and len(parts) == 4:
                content = tar.extractfile(member)
                assert content is not None
                yield parts[2], parts[3], content.read()
        while unpacked.read(1 << 20):
            pass


class _Hashed:
    """A file whose checksum is made while it is read."""

    def __init__(self, file: Any) -> None:
        self._file, self._hash = file, hashlib.md5(usedforsecurity=False)

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """Reads what is left and returns the checksum of all."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def corrupt(images: Images) -> dict[tuple[str, str], str]:
    """Returns category and name of every image that cannot be decoded, with why."""
    found = {}
    for category, own in images.items():
        for name, read in own.items():
            try:
                with Image.open(io.BytesIO(read())) as image:
                    image.load()
            except (OSError, SyntaxError, ValueError) as error:
                found[category, name] = str(error)
    return found

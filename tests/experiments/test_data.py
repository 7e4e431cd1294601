"""Our TFDS builders, the second on a small copy of the real layout."""

import hashlib
import io
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

import layerwise as lw
from experiments import data
from experiments.datasets import fungi10, inaturalist
from experiments.datasets.inaturalist import ARCHIVE, ROOT, first_categories
from experiments.training import Sgd, digits
from layerwise.errors import InputError


SIZES = {str(n): 4 + n % 3 for n in range(98, 110)}  # twelve kinds of Fungi


def jpeg(shade):
    out = io.BytesIO()
    Image.new("RGB", (12, 9), (shade, 0, 0)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def layout(tmp_path):
    """``train_val2019/<super category>/<category>/<image>.jpg``, as a folder."""
    manual = tmp_path / "manual"
    for group, kinds in (("Fungi", SIZES), ("Plants", {"3": 2})):
        for kind, size in kinds.items():
            folder = manual / ROOT / group / kind
            folder.mkdir(parents=True)
            for i in range(size):
                (folder / f"{kind}_{i}.jpg").write_bytes(jpeg(20 * i))
    return manual


@pytest.fixture
def archive(layout, tmp_path):
    """The same as the archive that is distributed, and its checksum."""
    manual = tmp_path / "tar"
    manual.mkdir()
    with tarfile.open(manual / ARCHIVE, "w:gz") as tar:
        tar.add(layout / ROOT, ROOT)
    md5 = hashlib.md5((manual / ARCHIVE).read_bytes(), usedforsecurity=False)
    return manual, md5.hexdigest()


def fungi(manual, tmp_path, **fields):
    return data.prepare("fungi10", str(tmp_path / "tfds"), str(manual), **fields)


def test_digits_are_those_of_scikit_learn(tmp_path):
    got = data.load(data.prepare("digits", str(tmp_path), None), 8)
    want = digits(8, channels=3)
    assert got.x.shape == (1437, 8, 8, 3)
    assert got.x_test.shape == (360, 8, 8, 3)

    def levels(x, y):
        """The 17 grey levels of every image with its class, in any order."""
        low, high = float(x.min()), float(x.max())
        grey = np.rint((x[..., 0] - low) / (high - low) * 16).astype(np.uint8)
        return sorted(zip((g.tobytes() for g in grey), y.tolist(), strict=True))

    assert levels(got.x, got.y) == levels(want.x, want.y)
    assert levels(got.x_test, got.y_test) == levels(want.x_test, want.y_test)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_fungi10_is_the_first_ten_kinds(form, layout, archive, tmp_path, capsys):
    manual, md5 = (layout, None) if form == "folder" else archive
    builder = fungi(manual, tmp_path, md5=md5, split="stratified")
    kinds = sorted(SIZES, key=int)[:10]
    rows = {s: list(builder.as_data_source(split=s)) for s in ("train", "validation")}
    for split, count in (("validation", lambda n: n // 4), ("train", lambda n: n)):
        found = [r["category"].decode() for r in rows[split]]
        minus = 0 if split == "validation" else 1
        for kind in kinds:
            left = count(SIZES[kind]) - minus * (SIZES[kind] // 4)
            assert found.count(kind) == left
    assert {r["category"].decode(): int(r["label"]) for r in rows["train"]} == {
        kind: i for i, kind in enumerate(kinds)
    }
    assert "fungi10 validation: 10 images" in capsys.readouterr().out
    loaded = data.load(builder, 16, fit="crop")
    assert loaded.x.dtype == np.uint8
    x, _ = loaded.train.take()
    assert x.shape[1:] == (16, 16, 3)
    assert np.square(x).mean() == pytest.approx(1, rel=1e-4)


def test_training_on_bytes_is_training_on_their_values(layout, tmp_path):
    bytes_ = data.load(fungi(layout, tmp_path), 8)
    values = bytes_.x / np.float32(127.5) - 1
    values /= np.sqrt(np.square(values).mean())
    floats = bytes_._replace(x=values, scale=1.0)
    np.testing.assert_allclose(bytes_.train.take()[0], values, rtol=1e-5, atol=1e-6)
    model = lw.zoo.mlp(input_shape=(8, 8, 3), widths=(4,))
    sgd, rows = Sgd(model), np.arange(8)
    states = [sgd.start(model.init(jax.random.key(0), bytes_.train.take()[0]))] * 2
    for _ in range(5):
        steps = [
            sgd.step(s, d.train, rows, np.float32(1e-2))
            for s, d in zip(states, (bytes_, floats), strict=True)
        ]
        states = [state for state, _ in steps]
        np.testing.assert_allclose(steps[0][1], steps[1][1], rtol=1e-5)


def test_archive_and_folder_hold_the_same(layout, archive):
    manual, md5 = archive
    ten = [first_categories(m, "Fungi", 10, md5=md5) for m in (layout, manual)]
    read = [{c: {n: f() for n, f in i.items()} for c, i in t.items()} for t in ten]
    assert read[0] == read[1]
    by_name = first_categories(layout, "Fungi", 10, order=str)
    assert next(iter(by_name)) == "100"


def test_a_random_split_is_a_quarter_of_all(layout):
    images = first_categories(layout, "Fungi", 10)
    split = fungi10.split_images(images, "random", 0)
    total = sum(map(len, images.values()))
    assert len(split["validation"]) == total // 4
    assert len({*split["train"], *split["validation"]}) == total
    assert split == fungi10.split_images(images, "random", 0)
    assert split != fungi10.split_images(images, "random", 1)


def test_absent_data_says_what_to_download(tmp_path):
    with pytest.raises(InputError) as absent:
        fungi(tmp_path / "nowhere", tmp_path)
    for said in ("74 GB", inaturalist.MD5, "non-commercial", ARCHIVE):
        assert said in str(absent.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither .* nor train_val2019.tar.gz"):
        first_categories(tmp_path / "empty", "Fungi", 10)


@pytest.mark.parametrize("name", ["mnist", "no_data_set_of_this_name"])
def test_a_data_set_that_is_not_prepared_is_not_downloaded(name, tmp_path):
    with pytest.raises(InputError, match=f"no prepared data set '{name}'"):
        data.prepare(name, str(tmp_path), None)


def test_a_truncated_archive_is_named(archive):
    manual, md5 = archive
    whole = (manual / ARCHIVE).read_bytes()
    (manual / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read to its end"):
        first_categories(manual, "Fungi", 10, md5=md5)


def test_a_wrong_archive_is_named(archive):
    with pytest.raises(InputError, match="It is not the archive of iNaturalist 2019"):
        first_categories(archive[0], "Fungi", 10)
    (archive[0] / ARCHIVE).write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match="truncated, or no gzipped tar"):
        first_categories(archive[0], "Fungi", 10)


def test_missing_categories_are_named(layout):
    with pytest.raises(InputError, match="has 12 categories of Fungi"):
        first_categories(layout, "Fungi", 13)
    for path in (layout / ROOT / "Fungi" / "99").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no image in 99"):
        first_categories(layout, "Fungi", 10)


def test_a_corrupt_image_is_named_counted_and_fatal(layout, tmp_path, capsys):
    bad = layout / ROOT / "Fungi" / "98" / "98_1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(InputError, match=r"1 images cannot be decoded: 98/98_1.jpg"):
        fungi(layout, tmp_path)
    builder = fungi(layout, tmp_path, corrupt="skip")
    assert "Left out: 1 images" in capsys.readouterr().out
    total = sum(SIZES[k] for k in sorted(SIZES, key=int)[:10])
    assert sum(s.num_examples for s in builder.info.splits.values()) == total - 1

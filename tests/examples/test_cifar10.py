"""The reader of CIFAR-10, on small made-up files of the two standard forms and on the real set where it is."""

import os
import pickle

import numpy as np
import pytest
import torch

from secateur.errors import ExitCode, UserError
from secateur.examples import cifar10
from secateur.examples.restricted_pickle import load_numpy_pickle

SMALL = 40
FILES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


@pytest.fixture
def small(monkeypatch):
    """Files of 40 images instead of 10,000."""
    monkeypatch.setattr(cifar10, "IMAGES_IN_FILE", SMALL)
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.integers(0, 256, (SMALL, cifar10.PIXELS), dtype=np.uint8),
            generator.integers(0, 10, SMALL).astype(np.uint8),
        )
        for name in FILES
    }


@pytest.fixture
def binary(small, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, (pixels, labels) in small.items():
        np.concatenate([labels[:, None], pixels], axis=1).tofile(folder / f"{name}.bin")
    return folder


@pytest.fixture
def pickled(small, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, (pixels, labels) in small.items():
        batch = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": ["a.png"] * SMALL}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=3).replace(b"numpy._core", b"numpy.core"))
    return folder


@pytest.mark.parametrize("form", ["binary", "pickled"])
def test_both_forms_hold_the_images(form, small, request):
    images, labels, test_images, test_labels = cifar10.read(request.getfixturevalue(form))
    assert images.shape == (5 * SMALL, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and len(test_labels) == SMALL
    pixels, expected = small["data_batch_2"]
    assert np.array_equal(labels[SMALL : 2 * SMALL].numpy(), expected)
    # A record is the red plane, then green, then blue, each row by row.
    assert int(images[SMALL + 3, 1, 2, 5]) == int(pixels[3, 1 * 1024 + 2 * 32 + 5])
    assert np.array_equal(test_images.reshape(SMALL, -1).numpy(), small["test_batch"][0])


def test_splits_are_disjoint_and_calibration_is_the_start_of_training(binary):
    data = cifar10.loaders(str(binary.parent), batch_size=16, validation=30, calibration=20)
    images = cifar10.read(binary)[0]
    assert torch.equal(data.calibration.images, images[:20])
    assert torch.equal(data.validation.images, images[-30:])
    assert len(data.train.labels) == 5 * SMALL - 30 and len(data.train) == 11
    assert data.train.shuffle and not data.calibration.shuffle
    assert data.train.augmentation and not (data.validation.augmentation or data.test.augmentation)
    assert torch.equal(next(iter(data.calibration))[0], next(iter(data.calibration))[0])


@pytest.mark.parametrize("sizes", [{"validation": 200}, {"validation": -1}, {"calibration": 0}, {"calibration": 500}])
def test_a_split_that_does_not_fit_is_refused(binary, sizes):
    with pytest.raises(UserError, match="cannot be split"):
        cifar10.loaders(str(binary), **{"validation": 10, "calibration": 10, **sizes})


def test_a_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as caught:
        cifar10.loaders(str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in caught.value.where
    assert "cifar-10-binary.tar.gz" in caught.value.hint and "SECATEUR_DATA" in caught.value.hint
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("form", ["binary", "pickled"])
def test_a_missing_file_is_named(form, request):
    folder = request.getfixturevalue(form)
    victim = next(folder.glob("data_batch_4*"))
    victim.unlink()
    with pytest.raises(UserError, match="missing") as caught:
        cifar10.read(folder)
    assert caught.value.where == str(victim)


def test_a_truncated_binary_file_is_refused(binary):
    path = binary / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged") as caught:
        cifar10.read(binary)
    assert str(SMALL * 3073) in caught.value.why


def test_a_truncated_pickle_is_refused(pickled):
    path = pickled / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="refused") as caught:
        cifar10.read(pickled)
    assert caught.value.where == str(path)


def test_labels_out_of_range_are_refused(binary, pickled):
    path = binary / "data_batch_1.bin"
    raw = bytearray(path.read_bytes())
    raw[7 * 3073] = 10
    path.write_bytes(raw)
    with pytest.raises(UserError, match="out of range") as caught:
        cifar10.read(binary)
    assert "image 7" in caught.value.where and "label is 10" in caught.value.why
    batch = load_numpy_pickle(pickled / "data_batch_1")
    batch["labels"][2] = -1
    (pickled / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=3))
    with pytest.raises(UserError, match="out of range"):
        cifar10.read(pickled)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"data": np.zeros((SMALL, 3072), np.uint8)},
        {"data": np.zeros((SMALL, 3072), np.float32), "labels": [0] * SMALL},
        {"data": np.zeros((SMALL, 100), np.uint8), "labels": [0] * SMALL},
        {"data": np.zeros((SMALL, 3072), np.uint8), "labels": ["cat"] * SMALL},
        {"data": np.zeros((SMALL, 3072), np.uint8), "labels": [0] * (SMALL - 1)},
    ],
)
def test_a_pickle_with_something_else_in_it_is_refused(pickled, batch):
    (pickled / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=3))
    with pytest.raises(UserError, match="damaged"):
        cifar10.read(pickled)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code(pickled, tmp_path):
    victim = tmp_path / "made-by-pickle"
    (pickled / "data_batch_1").write_bytes(pickle.dumps({"data": Touch(victim)}))
    with pytest.raises(UserError, match="refused") as caught:
        cifar10.read(pickled)
    assert "mkdir" in caught.value.why
    assert not victim.exists()


def test_real_images_have_the_published_statistics(cifar_root):
    images, labels, test_images, test_labels = cifar10.read(cifar_root)
    assert len(images) == 50_000 and len(test_images) == 10_000
    assert torch.bincount(labels).tolist() == [5000] * 10 and torch.bincount(test_labels).tolist() == [1000] * 10
    chunks = [chunk.float() / 255 for chunk in images.split(1000)]
    mean = torch.stack([chunk.mean((0, 2, 3)) for chunk in chunks]).mean(0)
    square = torch.stack([chunk.square().mean((0, 2, 3)) for chunk in chunks]).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=4e-3, rtol=0)
    torch.testing.assert_close((square - mean**2).sqrt(), torch.tensor([0.2470, 0.2435, 0.2616]), atol=4e-3, rtol=0)


def test_the_two_real_forms_agree(cifar_root):
    forms = [cifar_root / "cifar-10-batches-bin", cifar_root / "cifar-10-batches-py"]
    if not all(form.is_dir() for form in forms):
        pytest.skip("only one of the two forms of CIFAR-10 is here")
    assert all(torch.equal(a, b) for a, b in zip(*map(cifar10.read, forms), strict=True))

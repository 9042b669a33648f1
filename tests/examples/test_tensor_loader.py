"""Batches: normalisation, order, epochs, augmentation against a loop over images."""

import pytest
import torch

from secateur.errors import UserError
from secateur.examples.tensor_loader import Augmentation, TensorLoader

IMAGES = torch.randint(0, 256, (23, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(23)


def make(**options):
    return TensorLoader(IMAGES, LABELS, **{"batch_size": 5, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), **options})


def test_batches_are_normalised_and_in_order():
    loader = make()
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), (IMAGES / 255 - mean) / std)
    assert batches[0][0].dtype == torch.float32 and batches[0][1].dtype == torch.int64


def test_an_epoch_has_its_own_order_and_keeps_it():
    loader = make(shuffle=True, augmentation=Augmentation(pad=1, flip=True))

    def epoch(number):
        loader.set_epoch(number)
        return [torch.cat(parts) for parts in zip(*loader, strict=True)]

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[1].sort().values, LABELS)


def test_augmentation_draws_nothing_from_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(make(shuffle=True, augmentation=Augmentation(pad=2, flip=True)))
    assert torch.equal(torch.rand(1), expected)


def test_every_image_is_a_crop_of_itself_padded_and_perhaps_mirrored():
    pad = 2
    out = Augmentation(pad=pad, flip=True)(IMAGES, torch.Generator().manual_seed(0))
    assert out.shape == IMAGES.shape and out.dtype == torch.uint8
    seen = set()
    for image, result in zip(IMAGES, out, strict=True):
        canvas = torch.zeros(3, 6 + 2 * pad, 6 + 2 * pad, dtype=torch.uint8)
        canvas[:, pad:-pad, pad:-pad] = image
        crops = {
            (row, column, flip): canvas[:, row : row + 6, column : column + 6].flip(2 if flip else ())
            for row in range(2 * pad + 1)
            for column in range(2 * pad + 1)
            for flip in (False, True)
        }
        (how,) = [key for key, crop in crops.items() if torch.equal(crop, result)]
        seen.add(how)
    assert {flip for _, _, flip in seen} == {False, True}
    assert len({(row, column) for row, column, _ in seen}) > 8


def test_shifts_and_coins_are_uniform():
    """20,000 one-pixel images: a shift of at most one pixel keeps it in one case of nine."""
    images = torch.ones(20_000, 1, 1, 1, dtype=torch.uint8)
    kept = Augmentation(pad=1, flip=False)(images, torch.Generator().manual_seed(0)).float().mean()
    assert abs(float(kept) - 1 / 9) < 0.01
    pair = torch.tensor([0, 1], dtype=torch.uint8).expand(20_000, 1, 1, 2)
    mirrored = Augmentation(pad=0, flip=True)(pair, torch.Generator().manual_seed(0))[:, 0, 0, 0].float().mean()
    assert abs(float(mirrored) - 0.5) < 0.02


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"mean": (0.5,)}, {"std": (0.5, 0.5)}, {"std": (1.0, 0.0, 1.0)}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(UserError) as caught:
        make(**options)
    assert "data.args" in caught.value.where

"""The published checkpoints have their published accuracy on the real test images."""

import pytest
import torch
from safetensors.torch import load_file

from secateur.examples import cifar10, cifar_resnet

HALF = (0.5, 0.5, 0.5)


def top1(model, loader, batches=None):
    """Per cent, of the first `batches` batches."""
    model.eval()
    hits = seen = 0
    with torch.inference_mode():
        for index, (images, labels) in enumerate(loader):
            if index == batches:
                break
            hits += int((model(images).argmax(1) == labels).sum())
            seen += len(labels)
    return 100 * hits / seen


def load(model, checkpoints, name):
    model.load_state_dict(load_file(checkpoints / f"{name}_fp16.safetensors"))
    return model


def test_resnet20_is_right_on_the_first_thousand_test_images(cifar_root, checkpoints):
    """Within three standard errors (0.87 points) of the published 91.7 %."""
    data = cifar10.loaders(str(cifar_root), batch_size=250)
    model = load(cifar_resnet.resnet20(), checkpoints, "resnet20_akamaster")
    assert top1(model, data.test, batches=4) == pytest.approx(91.7, abs=2.6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "normalisation", "expected"),
    [
        ("resnet20_akamaster", cifar_resnet.resnet20, (cifar10.MEAN, cifar10.STD), 91.74),
        ("resnet32_akamaster", cifar_resnet.resnet32, (cifar10.MEAN, cifar10.STD), 92.64),
        ("resnet56_akamaster", cifar_resnet.resnet56, (cifar10.MEAN, cifar10.STD), 93.41),
        ("resnet20_chita", lambda: cifar_resnet.resnet20(shortcut="B", head="fc"), (HALF, HALF), 91.44),
    ],
)
def test_top1_on_all_test_images(name, make, normalisation, expected, cifar_root, checkpoints):
    mean, std = normalisation
    data = cifar10.loaders(str(cifar_root), batch_size=250, mean=mean, std=std)
    # Two images of room for another machine's rounding.
    assert top1(load(make(), checkpoints, name), data.test) == pytest.approx(expected, abs=0.021)

"""Example networks: published sizes, published checkpoints, shapes, bad arguments."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from secateur.examples import cifar_mobilenet, cifar_preresnet, cifar_resnet, wide_resnet
from secateur.examples.digits_resnet import digits_resnet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet_parameters_are_those_of_the_paper():
    """He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    factories = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
    millions = [parameters(getattr(cifar_resnet, name)()) / 1e6 for name in factories]
    assert [round(m, 2) for m in millions[:4]] == [0.27, 0.46, 0.66, 0.85]
    assert round(millions[4], 1) == 1.7


def test_wide_resnet_parameters_are_those_of_the_paper():
    """Zagoruyko and Komodakis 2016, table 4: WRN-40-1 0.6, WRN-16-8 11.0, WRN-28-10 36.5 million."""
    with torch.device("meta"):
        sizes = {
            (d, k): parameters(wide_resnet.wide_resnet(depth=d, widen=k)) / 1e6 for d, k in [(40, 1), (16, 8), (28, 10)]
        }
    assert {key: round(size, 1) for key, size in sizes.items()} == {(40, 1): 0.6, (16, 8): 11.0, (28, 10): 36.5}


def test_preresnet_parameters_are_those_of_the_paper():
    """He et al. 2016 (identity mappings), table 2: 1.7 million at depth 110 and 164."""
    with torch.device("meta"):
        sizes = [parameters(f()) / 1e6 for f in (cifar_preresnet.preresnet110, cifar_preresnet.preresnet164)]
    assert [round(size, 1) for size in sizes] == [1.7, 1.7]


def test_mobilenet_parameters_are_those_of_the_papers():
    """4.2 (V1) and 3.4 (V2) million with 1000 classes."""
    with torch.device("meta"):
        sizes = [
            parameters(f(num_classes=1000)) / 1e6 for f in (cifar_mobilenet.mobilenet_v1, cifar_mobilenet.mobilenet_v2)
        ]
    assert sizes == [pytest.approx(4.2, abs=0.05), pytest.approx(3.5, abs=0.05)]


@pytest.mark.parametrize(
    ("make", "channels", "size"),
    [
        (lambda: cifar_resnet.resnet20(width=4, num_classes=7), 3, 32),
        (lambda: cifar_resnet.resnet20(width=4, num_classes=7, shortcut="B", head="fc"), 3, 32),
        (lambda: cifar_preresnet.preresnet20(width=4, num_classes=7), 3, 32),
        (lambda: cifar_preresnet.preresnet29(width=4, num_classes=7), 3, 32),
        (lambda: wide_resnet.wide_resnet(depth=10, widen=1, num_classes=7, dropout=0.3), 3, 32),
        (lambda: cifar_mobilenet.mobilenet_v1(width=0.25, num_classes=7), 3, 32),
        (lambda: cifar_mobilenet.mobilenet_v2(width=0.25, num_classes=7), 3, 32),
        (lambda: digits_resnet(width=4, num_classes=7), 1, 8),
    ],
)
def test_every_network_maps_images_to_logits_and_learns(make, channels, size):
    model = make()
    images, labels = torch.randn(8, channels, size, size), torch.arange(8) % 7
    logits = model(images)
    assert logits.shape == (8, 7)
    nn.functional.cross_entropy(logits, labels).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_option_a_pads_half_the_new_channels_before_and_half_after():
    x = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4) + 1
    out = cifar_resnet.PadAndSlice(2, 6, 2)(x)
    assert out.shape == (2, 6, 2, 2)
    assert torch.equal(out[:, 2:4], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not out[:, :2].any() and not out[:, 4:].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: cifar_resnet.CifarResNet(21),
        lambda: cifar_resnet.CifarResNet(2),
        lambda: cifar_resnet.CifarResNet(20, shortcut="C"),  # pyright: ignore[reportArgumentType]
        lambda: cifar_preresnet.CifarPreResNet(29),
        lambda: wide_resnet.WideResNet(20, 1),
    ],
)
def test_a_depth_that_does_not_exist_is_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


PUBLISHED = [
    ("resnet20_akamaster", lambda: cifar_resnet.resnet20(shortcut="A", head="linear")),
    ("resnet32_akamaster", lambda: cifar_resnet.resnet32(shortcut="A", head="linear")),
    ("resnet56_akamaster", lambda: cifar_resnet.resnet56(shortcut="A", head="linear")),
    ("resnet20_chita", lambda: cifar_resnet.resnet20(shortcut="B", head="fc")),
]


@pytest.mark.parametrize(("name", "make"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_published_checkpoints_load_strictly(name, make, checkpoints):
    model = make()
    model.load_state_dict(load_file(checkpoints / f"{name}_fp16.safetensors"), strict=True)

"""Blocks without gradients or autocast in forward are captured, with the same derivatives."""

import pytest
import torch
from torch import nn

from secateur.errors import UnsupportedError
from secateur.passes.capture import capture


class Centred(nn.Module):
    """Subtracts a mean that gradients do not go through, and a scaled one from a block in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        with torch.no_grad():
            mean, size = x.mean(1, keepdim=True), x.abs().mean()
            with torch.autocast("cpu", enabled=False):
                half = mean * 0.5 * size
            with torch.enable_grad():
                other = x * 0.1
        return self.second((x - mean - half + other).relu())


class Rotary(nn.Module):
    """Angles as in decoders: a decorated forward, float32 whatever is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor([1.0, 0.1]), persistent=False)

    @torch.no_grad()
    def forward(self, x):
        with torch.autocast(device_type="cpu", enabled=False):
            angles = torch.arange(x.shape[1])[:, None].float() @ self.rate[None].float()
            table = torch.cat((angles.cos(), angles.sin()), -1)
        return table.to(x.dtype)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotary, self.mix = Rotary(), nn.Linear(4, 4)

    def forward(self, x):
        return self.mix(x * self.rotary(x))


@pytest.mark.parametrize("kind", [Centred, Decoder])
def test_values_and_gradients(kind):
    torch.manual_seed(0)
    model = kind().eval()
    shape = (3, 5, 4) if kind is Decoder else (3, 4)
    program = capture(model, torch.randn(2, *shape[1:]))
    assert program.static_batch is None
    x = torch.randn(shape, requires_grad=True)
    found = []
    for network in (model, program.module()):
        x.grad = None
        network.zero_grad()
        output = network(x)
        output.square().sum().backward()
        weights = {name: p.grad.clone() for name, p in network.named_parameters()}
        found.append((output.detach(), x.grad.clone(), weights))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_that_is_on_is_refused():
    class Half(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return x @ x.T

    with pytest.raises(UnsupportedError, match="autocast"):
        capture(Half(), torch.randn(3, 4))

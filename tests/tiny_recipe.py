"""A model and data so small that a whole compile takes seconds; the labels can be learnt from the images."""

import torch
from torch import nn


class TinyNet(nn.Module):
    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def samples(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright quadrant; the label says which."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=generator)
    y = torch.randint(0, 4, (n,), generator=generator)
    for label, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        x[y == label, label % 3, row : row + 4, column : column + 4] += 2.0 + label
    return x, y


def batches(n: int, seed: int, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = samples(n, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def loaders(train: int = 256) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    return {
        "train": batches(train, 1),
        "calibration": batches(128, 1),
        "validation": batches(128, 2),
        "test": batches(256, 3),
    }


def model(width: int = 16) -> nn.Module:
    """A trained TinyNet, always the same one."""
    torch.manual_seed(0)
    net = TinyNet(width)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(512, 1) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()

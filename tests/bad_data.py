"""Factories that are wrong in one way each."""

import tiny_recipe
import torch
from torch import nn


def no_train():
    return {"test": tiny_recipe.batches(32, 1)}


def empty():
    return {"train": [], "test": []}


def not_pairs():
    images = [torch.zeros(8, 3, 8, 8)]
    return {"train": images, "test": images}


def labels_out_of_range():
    wrong = [(x, y + 3) for x, y in tiny_recipe.batches(64, 1)]
    return {**tiny_recipe.loaders(), "train": wrong, "calibration": wrong}


def wrong_test_labels():
    good = tiny_recipe.batches(64, 1)
    return {**tiny_recipe.loaders(), "test": [*good, (good[0][0], good[0][1] + 3)]}


def wrong_validation_labels():
    return {**tiny_recipe.loaders(), "validation": [(x, y - 2) for x, y in tiny_recipe.batches(64, 1)]}


def nan_inputs():
    wrong = [(x * float("nan"), y) for x, y in tiny_recipe.batches(64, 1)]
    return {**tiny_recipe.loaders(), "train": wrong, "calibration": wrong}


def nan_weights():
    net = tiny_recipe.TinyNet()
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = float("nan")
    return net


def read_once():
    return {**tiny_recipe.loaders(), "train": iter(tiny_recipe.batches(64, 1))}


def no_loader():
    return {**tiny_recipe.loaders(), "test": 5}


class Breaks:
    """Gives one batch and then fails."""

    def __iter__(self):
        yield from tiny_recipe.batches(32, 1)
        raise OSError(5, "the disk is bad")


def breaks_midway():
    return {**tiny_recipe.loaders(), "test": Breaks()}


def other_channels():
    return {**tiny_recipe.loaders(), "test": [(x[:, :2], y) for x, y in tiny_recipe.batches(64, 1)]}


def exits():
    raise SystemExit(0)


def failing_loss(output, target):
    raise KeyError("no such thing")


def failing_metric(output, target):
    raise KeyError("no such thing")


def metric_of_nan(output, target):
    return (output.argmax(1) == target) * float("nan")


def metric_of_pixels(output, target):
    return (output > 0).flatten().float()


def half():
    return tiny_recipe.TinyNet().half()


def vector_loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")


class DataDependent(tiny_recipe.TinyNet):
    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else super().forward(-x)


def data_dependent():
    return DataDependent()

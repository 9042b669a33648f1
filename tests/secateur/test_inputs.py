"""What a recipe names becomes objects: the same ones in every process, and what is wrong with them is said."""

import pytest
import torch
from torch import nn

from secateur.errors import UserError
from secateur.factory import DataSpec
from secateur.inputs import capture_on, load_data
from secateur.loaders import CheckedLoader

SPLIT = """\
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split

def data():
    both = random_split(TensorDataset(torch.arange(32.0)), [16, 16])
    return dict(zip(("train", "test"), ([(b[0], b[0]) for b in DataLoader(part, 4)] for part in both)))
"""


def values(loader):
    return torch.cat([x for x, _ in loader]).tolist()


def test_a_random_split_is_the_same_whenever_the_factory_is_called(tmp_path):
    """A resumed run and the gates call it again: another split would test on training data."""
    (tmp_path / "split.py").write_text(SPLIT)
    spec = DataSpec(factory=f"{tmp_path}/split.py:data")
    before = torch.random.get_rng_state()
    first = load_data(spec)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(7)
    again = load_data(spec)
    assert values(first.train) == values(again.train) and values(first.test) == values(again.test)
    assert not set(values(first.train)) & set(values(again.test))


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8 * 36, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(8, -1))


def test_a_model_that_fixes_its_batch_is_captured_on_a_whole_batch():
    program = capture_on(FixedBatch(), [(torch.zeros(8, 3, 8, 8), torch.zeros(8))])
    assert "8" in (program.static_batch or "") and program.example_args[0].shape[0] == 8
    with pytest.raises(UserError, match="does not run"):
        capture_on(FixedBatch(), [(torch.zeros(12, 3, 8, 8), torch.zeros(12))])


def test_a_checked_loader_is_the_loader_in_every_other_respect():
    class Loader(list):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

    inner = Loader([1, 2])
    loader = CheckedLoader(inner, "train")
    loader.set_epoch(3)
    assert (list(loader), list(loader), len(loader), inner.epoch, loader.epoch) == ([1, 2], [1, 2], 2, 3, 3)
    assert getattr(loader, "sampler", None) is None


def test_a_loader_without_a_length_has_none():
    class Stream:
        def __iter__(self):
            return iter([1])

    with pytest.raises(TypeError):
        len(CheckedLoader(Stream(), "train"))


@pytest.mark.parametrize(("loader", "said"), [(iter([1]), "once"), ((i for i in [1]), "once"), (5, "iterated")])
def test_what_cannot_be_read_again_is_refused_before_anything_runs(loader, said):
    with pytest.raises(UserError, match=said):
        CheckedLoader(loader, "train")


def test_a_loader_that_fails_names_the_line_of_the_failure():
    class Breaks:
        def __iter__(self):
            yield 1
            raise OSError("a corrupt file")

    batches = iter(CheckedLoader(Breaks(), "test"))
    assert next(batches) == 1
    with pytest.raises(UserError, match="a corrupt file") as caught:
        next(batches)
    assert caught.value.where.startswith(f"{__file__}:") and isinstance(caught.value.__cause__, OSError)

"""The demo's data and its trained model."""

import builtins
import stat

import pytest
import torch

from secateur.errors import EnvironmentLacksError, ExitCode, UserError
from secateur.examples import cache, digits, digits_resnet, digits_training
from secateur.examples.digits_training import Training, accuracy


@pytest.fixture
def digits_data():
    pytest.importorskip("sklearn", reason="the digits need the extra demo (scikit-learn)")
    return digits.loaders()


def test_splits_cover_the_set_without_overlap(digits_data):
    parts = [digits_data.train, digits_data.validation, digits_data.test]
    assert [len(part.labels) for part in parts] == [1097, 200, 500]
    images, labels = digits.read()
    assert images.max() == 16
    # The same multiset of images, so no image is in two parts.
    gathered = torch.cat([part.images.reshape(-1, 64) for part in parts]).tolist()
    assert sorted(gathered) == sorted(images.reshape(-1, 64).tolist())
    assert torch.equal(torch.cat([p.labels for p in parts]).bincount(), labels.bincount())
    assert torch.equal(digits_data.calibration.images, digits_data.train.images[:512])


def test_the_split_depends_on_the_seed_alone(digits_data):
    assert torch.equal(digits.loaders().test.labels, digits_data.test.labels)
    assert not torch.equal(digits.loaders(seed=1).test.labels, digits_data.test.labels)


def test_pixels_are_standardised(digits_data):
    pixels = torch.cat([images for images, _ in digits_data.calibration])
    assert abs(float(pixels.mean())) < 0.03 and abs(float(pixels.std()) - 1) < 0.03


def test_a_split_that_does_not_fit_is_refused(digits_data):
    with pytest.raises(UserError, match="cannot be split"):
        digits.loaders(test=1500, validation=200)


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EnvironmentLacksError) as caught:
        digits.loaders()
    assert caught.value.code == ExitCode.ENVIRONMENT
    assert caught.value.hint == 'pip install "secateur[demo]"'


def test_the_demo_model_is_accurate(digits_data):
    assert accuracy(digits_resnet.digits_model(), digits_data.test) >= 98.0


@pytest.fixture
def quick(monkeypatch, tmp_path, digits_data):
    """A tiny training, counted, with an empty cache."""
    calls = []
    real = digits_training.train

    def counted(model, settings):
        calls.append(settings)
        return real(model, settings)

    monkeypatch.setattr(digits_resnet, "train", counted)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return calls


def tiny():
    return digits_resnet.digits_model(width=4, epochs=1)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_happens_once_and_leaves_the_random_state_alone(quick, tmp_path):
    torch.manual_seed(5)
    first = tiny()
    after_training = torch.rand(1)
    torch.manual_seed(5)
    second = tiny()
    assert torch.equal(torch.rand(1), after_training)
    assert len(quick) == 1 and same(first, second) and not second.training
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_other_settings_are_cached_apart(quick):
    tiny()
    digits_resnet.digits_model(width=4, epochs=1, seed=1)
    assert len(quick) == 2
    assert Training().cache_name() != Training(epochs=21).cache_name()


def test_training_is_deterministic(quick, tmp_path, monkeypatch):
    first = tiny()
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "other"))
    assert same(first, tiny()) and len(quick) == 2


def test_a_damaged_cache_is_made_again(quick, tmp_path, capsys):
    first = tiny()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(b"not safetensors")
    assert same(first, tiny())
    assert "warning" in capsys.readouterr().err and len(quick) == 2
    assert same(first, tiny()) and len(quick) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(quick, tmp_path, monkeypatch, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("SECATEUR_CACHE", str(blocker))
    assert same(tiny(), tiny()) and len(quick) == 2
    assert "cannot be cached" in capsys.readouterr().err


def test_progress_goes_to_stderr(quick, capsys):
    tiny()
    captured = capsys.readouterr()
    assert captured.out == "" and "epoch 1/1" in captured.err


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SECATEUR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache.cache_directory() == tmp_path / "secateur"
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "mine"))
    assert cache.cache_directory() == tmp_path / "mine"


def test_cached_files_are_readable_by_their_owner(quick, tmp_path):
    tiny()
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & stat.S_IRUSR

"""Factories are imported, called, and when they cannot be, the reason is said."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from secateur.errors import UserError
from secateur.factory import DataSpec, call_factory, load_factory, source_file


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "things.py").write_text(
        "from helper_of_things import double\n"
        "NUMBER = 3\n"
        "def make(a, b=2): return double(a), b\n"
        "def fail(**_):\n"
        "    raise ValueError('no such folder')\n"
    )
    (tmp_path / "helper_of_things.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "broken.py").write_text("import does_not_exist_anywhere\n")
    return tmp_path


def test_a_file_is_relative_to_the_base_and_may_import_its_neighbours(home):
    before = list(sys.path)
    assert call_factory("things.py:make", {"a": 4}, home) == (8, 2)
    assert sys.path == before
    assert load_factory("things.py:make", home) is load_factory(f"{home}/things.py:make")


def test_a_module_is_found_in_the_base_or_where_it_is_installed(home):
    assert call_factory("things:make", {"a": 1, "b": 5}, home) == (2, 5)
    assert load_factory("json:dumps")(1) == "1"


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("things.py:mke", "did you mean make?"),
        ("things.py:NUMBER", "int, not a function"),
        ("nowhere.py:make", "no such file"),
        ("nowhere_at_all:make", "no module 'nowhere_at_all'"),
        ("broken.py:make", "does_not_exist_anywhere"),
        ("things", "names no function"),
        (":make", "names no function"),
        ("things.py:", "names no function"),
    ],
)
def test_what_cannot_be_imported_says_why(home, factory, said):
    with pytest.raises(UserError) as caught:
        load_factory(factory, home, where="data.factory")
    assert said in str(caught.value)
    assert "data.factory" in caught.value.where or "broken.py" in caught.value.where


def test_known_short_names_are_suggested():
    with pytest.raises(UserError, match=r"did you mean top1\?"):
        load_factory("topp1", where="metric", known=("top1", "top5"))


def test_a_factory_that_raises_names_its_line_and_keeps_the_cause(home):
    with pytest.raises(UserError) as caught:
        call_factory("things.py:fail", {"root": "x"}, home, where="data.factory")
    error = caught.value
    assert "ValueError: no such folder" in error.what
    assert error.where == f"{home}/things.py:5"
    assert "root='x'" in error.why
    assert isinstance(error.__cause__, ValueError)


def test_wrong_arguments_are_an_error_of_the_user(home):
    with pytest.raises(UserError, match="unexpected keyword"):
        call_factory("things.py:make", {"a": 1, "c": 1}, home)


def test_an_error_made_for_people_passes_through(home):
    (home / "kind.py").write_text(
        "from secateur.errors import UserError\ndef f(): raise UserError('unpack it first')\n"
    )
    with pytest.raises(UserError) as caught:
        call_factory("kind.py:f", base_dir=home)
    assert caught.value.what == "unpack it first"


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.py").write_text(f"def f(): return {name!r}\n")
    assert [call_factory("same.py:f", base_dir=tmp_path / n) for n in ("a", "b")] == ["a", "b"]


def test_a_spec_is_anchored_once_and_for_all(home):
    assert DataSpec(factory="things.py:make").anchored(home).factory == f"{home}/things.py:make"
    assert DataSpec(factory="things:make").anchored(home).factory == "things:make"
    assert source_file("things:make") is None
    with pytest.raises(ValidationError, match=r"package\.module:function"):
        DataSpec(factory="things")


def test_what_ends_the_process_is_an_error_of_the_factory(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\ndef make(): sys.exit()\n")
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UserError, match="SystemExit") as caught:
        call_factory("ends.py:make", {}, tmp_path)
    assert caught.value.where == f"{tmp_path}/ends.py:2"
    with pytest.raises(UserError, match="SystemExit"):
        call_factory("ends_at_once.py:make", {}, tmp_path)


def test_the_line_named_is_always_one_of_the_users(tmp_path):
    (tmp_path / "wrong.py").write_text("\n\ndef make(:\n")
    with pytest.raises(UserError, match="SyntaxError") as caught:
        call_factory("wrong.py:make", {}, tmp_path)
    assert caught.value.where == f"{tmp_path}/wrong.py:3"
    (tmp_path / "right.py").write_text("def make(): pass\n")
    with pytest.raises(UserError, match="unexpected keyword") as caught:
        call_factory("right.py:make", {"width": 1}, tmp_path, where="model.factory")
    assert caught.value.where == "model.factory"

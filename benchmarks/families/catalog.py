"""The models of the table."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case
from .of_timm import timm_cases
from .of_torchvision import torchvision_cases
from .of_transformers import transformers_cases


def cases(names: list[str] | None = None, *, quick: bool = False) -> Iterator[Case]:
    """The models in the order of the table.

    Args:
        names: Parts of names; only models that one of them is part of.
        quick: Only those of the short run.
    """
    for case in [*transformers_cases(), *torchvision_cases(), *timm_cases()]:
        if (case.quick or not quick) and (not names or any(name in case.key for name in names)):
            yield case

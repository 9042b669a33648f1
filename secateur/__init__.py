"""secateur: a compiler that makes trained PyTorch models smaller and proves that they meet a budget.

The public names load on first use, so that `import secateur` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import apply, capture, fit_implants, heal, mask, plan, quantize, rank, verify_ranking
    from .checking import check
    from .compress.budget import Budget
    from .compress.heal.settings import TrainSettings
    from .compress.plan import Plan
    from .compress.sensitivity.table import Sensitivity
    from .compress.sensitivity.verify import Verification
    from .errors import Refused, UserError
    from .export.artifact import Artifact
    from .export.export import export
    from .gates import Gates
    from .passes.labels.register import register_rule
    from .passes.labels.rule import Rule
    from .passes.program import Program
    from .passes.widths import release_widths
    from .pipeline import compile
    from .recipe_file import load_recipe
    from .sparsity import sparsify
    from .verdict import Verdict
    from .version import __version__

_HOME = {
    "Artifact": "export.artifact",
    "Budget": "compress.budget",
    "Gates": "gates",
    "Plan": "compress.plan",
    "Program": "passes.program",
    "Refused": "errors",
    "Rule": "passes.labels.rule",
    "Sensitivity": "compress.sensitivity.table",
    "TrainSettings": "compress.heal.settings",
    "UserError": "errors",
    "Verdict": "verdict",
    "Verification": "compress.sensitivity.verify",
    "__version__": "version",
    "apply": "api",
    "capture": "api",
    "check": "checking",
    "compile": "pipeline",
    "fit_implants": "api",
    "heal": "api",
    "load_recipe": "recipe_file",
    "mask": "api",
    "plan": "api",
    "quantize": "api",
    "rank": "api",
    "register_rule": "passes.labels.register",
    "release_widths": "passes.widths",
    "sparsify": "sparsity",
    "verify_ranking": "api",
}

__all__ = [
    "Artifact",
    "Budget",
    "Gates",
    "Plan",
    "Program",
    "Refused",
    "Rule",
    "Sensitivity",
    "TrainSettings",
    "UserError",
    "Verdict",
    "Verification",
    "__version__",
    "apply",
    "capture",
    "check",
    "compile",
    "export",
    "fit_implants",
    "heal",
    "load_recipe",
    "mask",
    "plan",
    "quantize",
    "rank",
    "register_rule",
    "release_widths",
    "sparsify",
    "verify_ranking",
]


def __getattr__(name: str) -> Any:
    if name == "export":  # a room that can be called: see export/__init__.py
        return import_module(".export", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

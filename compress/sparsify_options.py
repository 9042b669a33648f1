"""Which options of `sparsify` a method reads, so that none is taken and then does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .chita.nm import parse_pattern
from .methods import METHODS
from .sparsify_settings import SparsifySettings

GRADIENTS = ("samples", "batch_size", "ridge", "holdout", "storage", "folder")
"""Options of all methods that take gradients."""

OWN = ("model", "first_order", "solver", "block_size")
"""Options that only some of those methods read; see `MethodInfo.options`."""


def unread(settings: SparsifySettings, given: Iterable[str]) -> dict[str, str]:
    """The options among `given` that these settings do not read, and why not.

    `seed` is never among them: where nothing is drawn, every seed gives the same, which is what a seed promises.

    Args:
        settings: All of them.
        given: Names of those that somebody asked for.
    """
    reasons = _reasons(settings)
    return {name: reasons[name] for name in given if name in reasons}


def options_of(method: str) -> tuple[str, ...]:
    """Names of all options that a method may read."""
    info = METHODS[method]
    foreign = {name for name in OWN if name not in info.options} | (set() if info.needs_data else set(GRADIENTS))
    return tuple(name for name in SparsifySettings.model_fields if name not in foreign and name != "method")


def _reasons(settings: SparsifySettings) -> Mapping[str, str]:
    """Why what is not read is not, by option."""
    method, info = settings.method, METHODS[settings.method]
    found: dict[str, str] = {}
    if not info.needs_data:
        found |= dict.fromkeys((*GRADIENTS, *OWN), f"{method} takes no gradients")
    found |= {name: f"{method} has no such option" for name in OWN if name not in (*found, *info.options)}
    if settings.solver != "bso":
        found.setdefault("block_size", f"solver={settings.solver} has no blocks")
    if settings.model == "outputs":
        found.setdefault("first_order", "model=outputs has no first-order term to weigh")
    if settings.storage not in ("auto", "disk"):
        found.setdefault("folder", f"storage={settings.storage} writes no file")
    if (settings.refit or ("layers" if info.refits else "none")) == "none":
        found["refit_samples"] = "no layer is refitted; refit=layers does so"
    if settings.pattern is not None:
        kept, of = parse_pattern(settings.pattern)
        share = 1.0 - kept / of
        names = ("schedule", "start") if abs(settings.sparsity - share) < 1e-9 else ("sparsity", "schedule", "start")
        found |= dict.fromkeys(names, f"pattern={settings.pattern} makes {share:.4g} of the weights zero")
    elif (settings.stages or info.stages) == 1:
        found |= dict.fromkeys(("schedule", "start"), "there is one stage")
    return found

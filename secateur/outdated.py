"""Finished steps of a run that do not follow from its recipe and plan as they are now."""

from __future__ import annotations

from .pipeline import step_key
from .progress import Silent
from .recipe_file import parse_recipe, read_yaml
from .run_directory import RunDirectory
from .steps import STEPS, Context
from .version import __version__


def outdated_steps(run: RunDirectory) -> tuple[str, ...]:
    """Names of the finished steps that the next compile runs again, as far as the run directory alone can tell.

    They are left where a run stops before its last step after its recipe or plan was changed. What capture reads lies
    outside, so it is taken as it is. Of a run of another version of secateur nothing is known, and none is named.

    Raises:
        UserError: The manifest or the recipe is damaged.
    """
    if run.manifest().get("environment", {}).get("secateur") != __version__:
        return ()
    raw = read_yaml(run.recipe_file, what="resolved recipe")
    recipe = parse_recipe(raw, where=str(run.recipe_file))
    if recipe.model_dump(mode="json") != raw:
        return ()  # recipes had other keys when it was written
    context = Context(recipe, run, Silent())
    outdated: list[str] = []
    for name, step in STEPS.items():
        record = run.record(step.folder)
        if record is None or not step.needs:
            continue
        # A step reads only some of those before it: one that is outdated itself still looks to it as it did.
        behind = any(need in outdated or run.record(STEPS[need].folder) is None for need in step.needs)
        if behind or record.key != step_key(step, context):
            outdated.append(name)
    return tuple(outdated)

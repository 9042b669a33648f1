"""`secateur init`: writes a recipe in which every key is explained."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError


def write_recipe(path: Path, *, force: bool) -> None:
    """Writes the commented recipe.

    Raises:
        UserError: The file exists and `force` is not given, or it cannot be written.
    """
    if path.exists() and not force:
        raise UserError(
            "there is a file here already", where=str(path), hint="--force replaces it; or name another file"
        )
    text = Path(__file__).with_name("recipe_template.yaml").read_text(encoding="utf-8")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            "the recipe cannot be written", where=str(path), why=str(error), hint="name another file"
        ) from None
    print(f"wrote {path}; next: secateur compile {path}")

"""The room that lowers programs, runs and times what it wrote; also a public function, `secateur.export(program, out)`.

The public name is the room's name, so the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import Artifact


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Artifact:
        """See `secateur.export.export.export`."""
        from .export import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom

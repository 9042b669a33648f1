"""All rules in one table."""

from __future__ import annotations

from .rule import Key, Rule
from .rules_contract import CONTRACT
from .rules_index import INDEX
from .rules_join import JOIN
from .rules_layers import LAYERS
from .rules_movement import MOVEMENT
from .rules_parts import PARTS
from .rules_pointwise import POINTWISE
from .rules_reduce import REDUCE

RULES: dict[Key, Rule] = {**LAYERS, **MOVEMENT, **PARTS, **JOIN, **REDUCE, **POINTWISE, **CONTRACT, **INDEX}
"""Operation or layer class to rule. Users add theirs with `register_rule`; tests extend a copy with `with_rule`."""

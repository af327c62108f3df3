"""What a value of a configuration is; true and false, which Python takes for numbers, are none."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard


def is_whole(value: Any, least: float = 1, most: float = math.inf) -> TypeGuard[int]:
    """Whether it is a whole number within bounds."""
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float = -sys.float_info.max, most: float = sys.float_info.max) -> TypeGuard[float]:
    """Whether it is a finite number within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

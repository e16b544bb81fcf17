"""What the launchers of all kernels share."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cond_detr_kernels.conditional_attention.problem import LOG2_E, ROW_PADDING, Problem
from cond_detr_kernels.conditional_attention.reference import drop_threshold

# Multiply-adds in one instruction: Triton's default changed in 3.9; without them a score costs an instruction more
OPTIONS = {"enable_fp_fusion": True}


class Launch(NamedTuple):
    """A kernel and what to launch it with; a value, so that it can also be compiled without a device."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **OPTIONS)

    def compile(self) -> Any:
        """The compiled kernel, which is not run."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, **OPTIONS)


def column_block(dim: int) -> int:
    """A head dim rounded up to what tensor cores take."""
    return max(16, triton.next_power_of_2(dim))


def dot_precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied, following torch's setting; without meaning for half precision."""
    # not torch.get_float32_matmul_precision(): that raises once this newer setting has been used
    exact = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "ieee" if exact else "tf32"


def views(**tensors: Tensor) -> dict[str, Any]:
    """Kernel arguments: each tensor under its name, its strides under that name and ``_strides``."""
    return tensors | {f"{name}_strides": tensor.stride() for name, tensor in tensors.items()}


def head_dims(problem: Problem) -> dict[str, int]:
    content, spatial, value = problem.dims
    return {
        "CONTENT_DIM": content,
        "SPATIAL_DIM": spatial,
        "VALUE_DIM": value,
        "CONTENT_BLOCK": column_block(content),
        "SPATIAL_BLOCK": column_block(spatial),
        "VALUE_BLOCK": column_block(value),
        "ROW_PADDING": ROW_PADDING,
    }


def scoring(problem: Problem, key_mask: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every kernel that computes scores; ``key_mask`` are those that masking.py prepares."""
    _, heads, queries, keys = problem.sizes
    return {
        **views(
            q_content=problem.q_content,
            q_spatial=problem.q_spatial,
            k_content=problem.k_content,
            k_spatial=problem.k_spatial,
            value=problem.value,
        ),
        **key_mask,
        "seed": problem.seed,
        "drop_below": drop_threshold(problem.dropout_p),
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "scale_log2": problem.scale * LOG2_E,
        **head_dims(problem),
        "DROPOUT": problem.dropout_p > 0,
        "PRECISION": dot_precision(problem.value.dtype),
    }

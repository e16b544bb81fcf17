"""The device that a problem runs on, and the kernel configurations for it."""

import functools
from typing import NamedTuple

import torch

from cond_detr_kernels.conditional_attention import measured
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.tuning import Tuning, tuning_for


class Target(NamedTuple):
    """The device that a problem runs on.

    Attributes:
        tuning: kernel configurations.
        multiprocessors: number of streaming multiprocessors.
    """

    tuning: Tuning
    multiprocessors: int


def target_of(problem: Problem) -> Target:
    """Configurations measured on the problem's device, or those of the static table, and its multiprocessors."""
    if not problem.value.is_cuda:  # Triton's interpreter
        return Target(tuning_for(90, problem), multiprocessors=132)
    device = problem.value.device
    capability, multiprocessors = _device(device.index)
    situation = measured.situation_of(
        problem.q_content,
        problem.q_spatial,
        problem.value,
        masked=problem.key_mask is not None,
        dropout_p=problem.dropout_p,
        training=True,
    )
    found = measured.find(device, situation)
    return Target((found and found.tuning) or tuning_for(capability, problem), multiprocessors)


@functools.cache
def _device(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return 10 * properties.major + properties.minor, properties.multi_processor_count

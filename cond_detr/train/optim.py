"""AdamW with separate learning rates for backbone and transformer, and learning rate schedules."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cond_detr.config import TrainConfig
from cond_detr.errors import InputError
from cond_detr.weights.storages import kind_of


def make_optimizer(model: nn.Module, train: TrainConfig, *, capturable: bool = False) -> torch.optim.AdamW:
    """Creates AdamW for the trainable parameters, with weight decay on all of them, as in DETR.

    Args:
        model: the network, or one with training queries.
        train: learning rates and weight decay.
        capturable: whether CUDA graphs will capture it; it then reads the learning rates from the device, where
            :func:`set_lr` puts them.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith(("backbone.", "network.backbone."))].append(parameter)
    rates = {False: train.lr, True: train.backbone_lr}
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rates[of_backbone], "initial_lr": rates[of_backbone]}
            for of_backbone, parameters in groups.items()
            if parameters  # the backbone may be frozen
        ],
        weight_decay=train.weight_decay,
        fused=True,
        capturable=capturable,
    )


def lr_factor(train: TrainConfig, step: int, total_steps: int) -> float:
    """Factor of the learning rates at a step in [0, total_steps), by the schedule of ``train``."""
    progress = step / total_steps
    if train.schedule == "step":
        return 1.0 if progress < train.lr_drop else 0.1
    warm_up = 0.1
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


# AdamW counts steps in float32, which cannot count further
LARGEST_STEP = 2**24
# AdamW's state of each parameter, besides the step
MOMENTS = ("exp_avg", "exp_avg_sq")


def restore(optimizer: torch.optim.Optimizer, saved: Any, steps: int, clip_norm: float = math.inf) -> None:
    """Restores the moments and step counts of a saved optimiser state; learning rates and the like are not restored.

    The state is checked and copied: the fused kernels assume that moments have the shape and layout of the parameters.

    Args:
        optimizer: optimiser of the same parameters, on any device.
        saved: the ``state_dict()`` of the saved optimiser.
        steps: number of steps that it has done.
        clip_norm: largest norm that the gradients had.

    Raises:
        InputError: if it is the state of another optimiser, or damaged.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(state, dict):
        raise InputError("the optimizer's state must hold moments by parameter")
    expected = set(range(len(parameters))) if steps else set()
    if state.keys() != expected:
        raise InputError(
            f"the optimizer's state must be of {len(expected)} parameters after {steps} steps, got {len(state)}"
        )
    restored = {i: _moments(f"of parameter {i}", state[i], parameters[i], steps, clip_norm) for i in sorted(expected)}
    optimizer.load_state_dict({"state": restored, "param_groups": groups})


@torch.no_grad()
def _moments(where: str, saved: Any, parameter: nn.Parameter, steps: int, clip_norm: float) -> dict[str, Tensor]:
    """AdamW's state of a parameter, checked and copied."""
    if not isinstance(saved, dict) or saved.keys() != {"step", *MOMENTS}:
        raise InputError(f"the optimizer's state {where} must have step, {' and '.join(MOMENTS)}")
    wanted = {"step": torch.Size(), **dict.fromkeys(MOMENTS, parameter.shape)}
    for name, shape in wanted.items():
        value = saved[name]
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
            raise InputError(
                f"the optimizer's {name} {where} must be torch.float32 of {tuple(shape)}, got {kind_of(value)}"
            )
    first, second = (saved[name] for name in MOMENTS)
    if not first.isfinite().all() or not second.isfinite().all() or (second < 0).any():
        raise InputError(f"the optimizer's moments {where} must be finite, and the second not negative")
    # averages of gradients g and of their squares: |g| <= clip_norm, and by Cauchy and Schwarz |first| < 8 sqrt(second)
    if (first.abs() > 8 * second.sqrt() + 1e-15).any() or (second > 1.01 * clip_norm**2).any():
        raise InputError(
            f"the optimizer's moments {where} are not of the same gradients, or of larger than `clip_norm`"
        )
    if saved["step"] != min(steps, LARGEST_STEP):
        raise InputError(f"the optimizer's state {where} is of step {saved['step'].item():g}, expected {steps}")
    # in the memory layout of the parameter, as AdamW makes them
    copies = {name: torch.empty_like(parameter, device="cpu").copy_(saved[name]) for name in MOMENTS}
    return {"step": saved["step"].clone(), **copies}


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rates to ``factor`` times the initial ones."""
    for group in optimizer.param_groups:
        lr = group["initial_lr"] * factor
        if not group["capturable"]:
            group["lr"] = lr
        elif isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # a captured step reads this very tensor
        else:
            group["lr"] = torch.tensor(lr, device=group["params"][0].device)

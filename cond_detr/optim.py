"""AdamW with a rate for the backbone and one for the rest, and schedules as plain functions of the step."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cond_detr.config import TrainConfig


def make_optimizer(model: nn.Module, train: TrainConfig, *, capturable: bool = False) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on all of them, as in DETR.

    A capturable one reads the learning rates from the device, where :func:`set_lr` puts them.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("backbone.")].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[False], "lr": train.lr, "initial_lr": train.lr},
            {"params": groups[True], "lr": train.backbone_lr, "initial_lr": train.backbone_lr},
        ],
        weight_decay=train.weight_decay,
        fused=True,
        capturable=capturable,
    )


def lr_factor(train: TrainConfig, step: int, total_steps: int) -> float:
    """What the learning rates are multiplied by at a step in [0, total_steps)."""
    progress = step / total_steps
    if train.schedule == "step":
        return 1.0 if progress < train.lr_drop else 0.1
    warm_up = 0.1
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continues from a saved state, on whatever device that was saved."""
    capturable = optimizer.param_groups[0]["capturable"]
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group |= {"capturable": capturable, "lr": float(group["lr"])}


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the rates to ``factor`` times the initial ones."""
    for group in optimizer.param_groups:
        lr = group["initial_lr"] * factor
        if not group["capturable"]:
            group["lr"] = lr
        elif isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # a captured step reads this very tensor
        else:
            group["lr"] = torch.tensor(lr, device=group["params"][0].device)

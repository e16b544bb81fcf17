"""Batch norm: frozen, for backbones pretrained on ImageNet, and synchronised, for small ones trained from scratch."""

from typing import Any

import torch
from torch import Tensor, nn

from cond_detr import distributed


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine parameters, all of them buffers.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel that the layer amounts to, (channels,) each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, channels, H, W) features."""
        scale, shift = self.affine()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the batches of all processes together.

    Unlike ``torch.nn.SyncBatchNorm`` it also works on CPUs. With one process it is plain batch norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, channels, H, W) features."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        features = x.float()
        count = features.new_tensor(float(x.numel() // x.shape[1]))
        total = distributed.sum_over_ranks(count)
        mean = _sum_over_ranks(features.sum((0, 2, 3))) / total
        centred = features - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / total
        self._update(mean.detach(), (variance * total / (total - 1)).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        momentum = self.momentum or 0.0
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes that gradients flow through: they are summed over the processes as well."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return distributed.sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return distributed.sum_over_ranks(gradient.clone())


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return summed

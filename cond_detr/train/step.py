"""One optimiser step: forward, matching, loss, backward, clipping, update.

It has no host-device synchronisation, so that the host runs ahead of the device, and cuda_graphs.py can capture it.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cond_detr.config import TrainConfig
from cond_detr.data.batching import Batch
from cond_detr.train.criterion import Criterion


class Outcome(NamedTuple):
    """Result of a backward pass.

    Attributes:
        losses: (4,) fp64, the :data:`~cond_detr.weights.progress.LOSS_NAMES` of this process.
        sanitised: (B,) bool, True for images whose predictions were not finite.
    """

    losses: Tensor
    sanitised: Tensor


def forward_backward(
    network: nn.Module, criterion: Criterion, batch: Batch, num_boxes: Tensor, amp: str, share: float = 1.0
) -> Outcome:
    """Runs forward and backward of a batch; adds to the gradients.

    Args:
        network: the network, or one with training queries.
        criterion: the loss.
        batch: images and targets, on the device of the network.
        num_boxes: scalar that the losses are divided by.
        amp: "bf16" for autocast, or "off".
        share: as in :meth:`cond_detr.train.criterion.Criterion.__call__`.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=amp == "bf16"):
        predictions = network(*batch.inputs(), *([batch.targets] if criterion.denoising else []))
    losses = criterion(predictions, batch.targets, num_boxes, share)
    losses.total.backward()
    parts = (losses.total, losses.classification, losses.l1, losses.giou)
    return Outcome(torch.stack([part.detach() for part in parts]).double(), losses.sanitised)


class TrainStep:
    """An optimiser step in eager mode.

    Args:
        model: the module whose parameters are trained, :func:`cond_detr.train.training_queries.for_training`.
        network: the module to call: the same, or a wrapper of it.
        criterion: the loss.
        optimizer: optimiser of the parameters.
        train: gradient clipping, precision and accumulation.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
    ) -> None:
        self.model = model
        self.network = network
        self.criterion = criterion
        self.optimizer = optimizer
        self.train = train

    def backward(self, batch: Batch, num_boxes: Tensor, *, last: bool) -> Outcome:
        """Runs forward and backward of a batch; adds to the gradients.

        Args:
            batch: images and targets, on the device of the network.
            num_boxes: scalar that the losses are divided by.
            last: whether this is the last batch of the step, in which the processes average their gradients.
        """
        with self._gradient_sync(last):
            return self.compute(batch, num_boxes)

    def compute(self, batch: Batch, num_boxes: Tensor) -> Outcome:
        """Like :meth:`backward`, without control of the exchange between processes."""
        share = 1 / self.train.accumulate
        return forward_backward(self.network, self.criterion, batch, num_boxes, self.train.amp, share)

    def update(self) -> None:
        """Clips the gradients, updates the parameters, and resets the gradients."""
        self.clip_and_move()
        self.optimizer.zero_grad(set_to_none=True)

    def clip_and_move(self) -> None:
        """Clips the gradients and updates the parameters."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.optimizer.step()

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

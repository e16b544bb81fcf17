"""One optimiser step: forward, matching, loss, backward, clipping, update.

Nothing in it asks the device for a value: the host runs ahead of it, and cuda_graphs.py can capture it.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cond_detr.config import TrainConfig
from cond_detr.criterion import Criterion
from cond_detr.data.batching import Batch


class Outcome(NamedTuple):
    """Of a backward pass.

    Attributes:
        losses: (4,) fp64, this process's :data:`LOSS_NAMES`.
        sanitised: (B,) bool, images whose predictions were not finite.
    """

    losses: Tensor
    sanitised: Tensor


def forward_backward(
    network: nn.Module, criterion: Criterion, batch: Batch, num_boxes: Tensor, amp: str, share: float = 1.0
) -> Outcome:
    """Adds the gradients of a batch, by this process alone."""
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=amp == "bf16"):
        predictions = network(batch.images, batch.padding)
    losses = criterion(predictions, batch.targets, num_boxes, share)
    losses.total.backward()  # type: ignore[no-untyped-call]
    parts = (losses.total, losses.classification, losses.l1, losses.giou)
    return Outcome(torch.stack([part.detach() for part in parts]).double(), losses.sanitised)


class TrainStep:
    """A step, operation by operation.

    Args:
        model: whose parameters are trained.
        network: what is called: the model, or what wraps it.
        criterion: the loss.
        optimizer: of the model's parameters.
        train: clipping and precision.
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
        """Adds the gradients of a batch on the device.

        Args:
            batch: images and targets.
            num_boxes: scalar that the losses are divided by.
            last: whether it is the last batch of the step, with which processes exchange their gradients.
        """
        with self._gradient_sync(last):
            return self.compute(batch, num_boxes)

    def compute(self, batch: Batch, num_boxes: Tensor) -> Outcome:
        """The gradients alone."""
        share = 1 / self.train.accumulate
        return forward_backward(self.network, self.criterion, batch, num_boxes, self.train.amp, share)

    def update(self) -> None:
        """Moves the parameters along the gradients, and forgets those."""
        self.clip_and_move()
        self.optimizer.zero_grad(set_to_none=True)

    def clip_and_move(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.optimizer.step()

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

"""A training step captured as CUDA graphs, so that the host need not launch its thousands of kernels.

There is a graph of forward and backward for each shape of batch, and one of clipping and update. Batches of a step, and
those of different processes, may differ in shape: all gradients are in one buffer, which the processes average between
backward and update.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cond_detr import distributed
from cond_detr.config import Config
from cond_detr.data.batching import Batch
from cond_detr.errors import InputError
from cond_detr.models.normalization import SyncedBatchNorm2d
from cond_detr.train.step import Outcome, TrainStep

T = TypeVar("T")

# Each graph costs the memory of its inputs and some host memory; further shapes run in eager mode
MAX_GRAPHS = 64
# Alignment of each gradient in the buffer, in elements, for vectorised loads
ALIGNMENT = 64


def why_not(config: Config, model: nn.Module, device: torch.device) -> str | None:
    """Why the steps of a run cannot be captured, for messages; None if they can."""
    if device.type != "cuda":
        return f"{device} is not a CUDA device"
    if config.train.deterministic:
        return "deterministic algorithms may wait for the device"
    if config.train.checkpointing:
        return "gradient checkpointing reads the state of the random generator"
    if config.loss.matcher != "native":
        return f"the matcher {config.loss.matcher!r} works on the host"
    if distributed.world_size() > 1 and any(isinstance(m, SyncedBatchNorm2d) for m in model.modules()):
        return "batch norm trains on the statistics of several processes"
    return None


class Recorder(Protocol):
    """Interface of :class:`CudaRecorder`: captures functions for replay."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Runs a function as in a capture, so that one-time initialisations are done before it is captured."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Captures a function without running it; returns a call that replays it on the same memory."""


class CudaRecorder:
    """Captures CUDA graphs on one stream, with a common memory pool, as they run one after the other.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        """Runs a function on the stream of the captures."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Captures a function as a CUDA graph; returns its replay."""
        graph = torch.cuda.CUDAGraph()
        # of this thread only: loaders go on pinning memory in theirs
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


class Shape(NamedTuple):
    """The properties of a batch that a graph depends on.

    Attributes:
        pixels: shape of the images.
        padded: whether there is a padding mask.
        targets: number T of padded targets of each image.
    """

    pixels: torch.Size
    padded: bool
    targets: int


@dataclass
class Slot:
    """The memory that a captured pass reads and writes.

    Attributes:
        batch: input.
        num_boxes: input, a scalar.
        outcome: output.
        replay: replays the graph; None if it could not be captured.
    """

    batch: Batch
    num_boxes: Tensor
    outcome: Outcome
    replay: Callable[[], None] | None = None

    def load(self, batch: Batch, num_boxes: Tensor) -> None:
        """Copies a batch of the same shape into the input."""
        for ours, theirs in zip(self.batch.tensors(), batch.tensors(), strict=True):
            ours.copy_(theirs)
        self.num_boxes.copy_(num_boxes)


class GraphedStep:
    """A :class:`cond_detr.train.step.TrainStep` captured as CUDA graphs.

    A shape runs in eager mode the first time, and is captured the second time.

    Args:
        step: the step, without ``DistributedDataParallel``: gradients are averaged over the processes here.
        recorder: captures the graphs; replaced in tests.
    """

    def __init__(self, step: TrainStep, recorder: Recorder) -> None:
        self.step = step
        self.recorder = recorder
        self.gradients = flat_gradients(step.model)
        self.slots: dict[Shape, Slot | None] = {}
        self.updates = 0
        self.replay_update: Callable[[], None] | None = None
        self.broken = False

    def backward(self, batch: Batch, num_boxes: Tensor, *, last: bool) -> Outcome:  # noqa: ARG002 - as TrainStep's
        """Runs or replays forward and backward; see :meth:`cond_detr.train.step.TrainStep.backward`.

        Raises:
            InputError: if CUDA refuses the capture.
        """
        shape = Shape(batch.pixels.shape, batch.padding is not None, batch.targets.labels.shape[1])
        slot = self.slots.get(shape)
        if slot is None and shape in self.slots and self._may_capture():
            slot = self.slots[shape] = self._capture_pass(batch, num_boxes)
        self.slots.setdefault(shape, None)
        if slot is None or slot.replay is None:
            return self.recorder.warm_up(lambda: self.step.compute(batch, num_boxes))
        slot.load(batch, num_boxes)
        slot.replay()
        return Outcome(*(tensor.clone() for tensor in slot.outcome))

    def update(self) -> None:
        """Averages the gradients over the processes; see :meth:`cond_detr.train.step.TrainStep.update`.

        Raises:
            InputError: if CUDA refuses the capture.
        """
        distributed.mean_over_ranks(self.gradients)
        if self.updates == 1 and not self.broken:
            self.replay_update = self._try_to_capture(self._clip_and_move)
        self.updates += 1
        if self.replay_update:
            self.replay_update()
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                self.recorder.warm_up(self._clip_and_move)

    def _clip_and_move(self) -> None:
        self.step.clip_and_move()
        self.gradients.zero_()

    def _may_capture(self) -> bool:
        return not self.broken and sum(slot is not None for slot in self.slots.values()) < MAX_GRAPHS

    def _capture_pass(self, batch: Batch, num_boxes: Tensor) -> Slot:
        losses = torch.zeros(4, dtype=torch.float64, device=batch.pixels.device)
        sanitised = torch.zeros(len(batch.pixels), dtype=torch.bool, device=batch.pixels.device)
        slot = Slot(batch.clone(), num_boxes.clone(), Outcome(losses, sanitised))

        def run() -> None:
            for ours, theirs in zip(slot.outcome, self.step.compute(slot.batch, slot.num_boxes), strict=True):
                ours.copy_(theirs)

        slot.replay = self._try_to_capture(run)
        return slot

    def _try_to_capture(self, function: Callable[[], None]) -> Callable[[], None] | None:
        """Captures a function; returns None, and captures no more from then on, if it cannot be captured.

        Raises:
            InputError: if CUDA refuses, which leaves the random generator and the allocator unusable.
        """
        try:
            return self.recorder.capture(function)
        except torch.AcceleratorError as error:
            raise InputError(
                f"the step cannot be captured ({_cause(error)}); start again without `cuda_graphs`"
            ) from None
        except RuntimeError as error:
            self.broken = True
            tqdm.write(f"warning: no more CUDA graphs, steps run uncaptured from here: {_cause(error)}")
            return None


def _cause(error: BaseException) -> str:
    """First line of the message of the original error."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0]


def flat_gradients(model: nn.Module) -> Tensor:
    """Makes the gradients of all trained parameters views of one buffer, with the memory layout of the parameters.

    Returns:
        The buffer, one-dimensional and filled with zeros.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lengths = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in parameters]
    flat = torch.zeros(sum(lengths), device=parameters[0].device)
    for parameter, part in zip(parameters, torch.split(flat, lengths), strict=True):
        parameter.grad = part.as_strided(parameter.shape, parameter.stride())
    return flat

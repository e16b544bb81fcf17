"""The captured step computes what the uncaptured one does.

Without a GPU a recorder stands in that repeats functions on the same memory, which is what a graph does.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from cond_detr import ConditionalDETR, InputError, preset
from cond_detr.config import Config
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.model import new_network
from cond_detr.train.criterion import Criterion
from cond_detr.train.cuda_graphs import MAX_GRAPHS, CudaRecorder, GraphedStep, Recorder, flat_gradients, why_not
from cond_detr.train.optim import make_optimizer, restore, set_lr
from cond_detr.train.step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")
T = TypeVar("T")


class Repeater:
    """Notes what it is asked to capture, and repeats it by running it."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0
        self.fails = False

    def warm_up(self, function: Callable[[], T]) -> T:
        return function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            function()

        return replay


def config_with(dropout: float) -> Config:
    config = preset("shapes")
    return replace(config, model=replace(config.model, dropout=dropout, fused_attn=True))


def make_step(device: torch.device, dropout: float = 0.1, *, capturable: bool = False) -> TrainStep:
    torch.manual_seed(0)
    config = config_with(dropout)
    network = new_network(config, 3).to(device).train()
    optimizer = make_optimizer(network, config.train, capturable=capturable)
    return TrainStep(network, network, Criterion(config.loss), optimizer, config.train)


def make_batch(height: int, width: int, counts: list[int], device: torch.device, *, padded: bool = True) -> Batch:
    images = torch.randint(0, 256, (len(counts), 3, height, width), dtype=torch.uint8)
    padding = torch.zeros(len(counts), height, width, dtype=torch.bool)
    padding[0, :, width // 2 :] = True
    boxes = [torch.rand(n, 4) * 0.4 + 0.1 for n in counts]
    targets = pad_targets([torch.randint(0, 3, (n,)) for n in counts], boxes)
    batch = Batch(
        images, padding if padded else None, targets, tuple(range(len(counts))), [(width, height)] * len(counts)
    )
    return batch.to(device)


def some_batches(device: torch.device) -> list[Batch]:
    """Two shapes that come again and again, with and without objects, and one that comes once."""
    torch.manual_seed(1)
    return [
        make_batch(32, 48, [1, 3], device),
        make_batch(48, 32, [0, 0], device),
        make_batch(32, 48, [0, 7], device),
        make_batch(48, 32, [2, 1], device),
        make_batch(32, 48, [4, 0], device),
        make_batch(32, 48, [4, 20], device),
        make_batch(32, 48, [5, 5], device, padded=False),
        make_batch(48, 32, [9, 2], device),
    ]


def train(step: TrainStep | GraphedStep, batches: list[Batch], accumulate: int = 1) -> list[Tensor]:
    losses = []
    optimizer = step.optimizer if isinstance(step, TrainStep) else step.step.optimizer
    for number in range(len(batches) // accumulate):
        torch.manual_seed(number)
        set_lr(optimizer, 1 / (1 + number))
        group = batches[number * accumulate : (number + 1) * accumulate]
        num_boxes = torch.stack([batch.targets.counts.sum() for batch in group]).sum().clamp(min=1)
        for batch in group:
            losses.append(step.backward(batch, num_boxes, last=batch is group[-1]).losses)
        step.update()
    return losses


def assert_same(a: TrainStep, b: TrainStep, **tolerance: float) -> None:
    for (name, ours), theirs in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_captured_equals_uncaptured(accumulate: int) -> None:
    device = torch.device("cpu")
    plain, inner = make_step(device), make_step(device)
    recorder = Repeater()
    graphed = GraphedStep(inner, recorder)
    want = train(plain, some_batches(device), accumulate)
    got = train(graphed, some_batches(device), accumulate)
    assert torch.equal(torch.stack(want), torch.stack(got))
    assert_same(plain, inner, rtol=0, atol=0)
    assert recorder.captured == 3  # two shapes and the update
    assert recorder.replayed == 4 + 8 // accumulate - 1


def test_what_cannot_be_captured_runs_uncaptured(capsys: pytest.CaptureFixture[str]) -> None:
    device = torch.device("cpu")
    plain, inner = make_step(device), make_step(device)
    recorder = Repeater()
    recorder.fails = True
    train(plain, some_batches(device))
    train(GraphedStep(inner, recorder), some_batches(device))
    assert_same(plain, inner, rtol=0, atol=0)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].endswith("steps run uncaptured from here: operation not permitted when stream is capturing")


def test_a_refusal_by_cuda_stops_the_run() -> None:
    class Refusing(Repeater):
        def capture(self, function: Callable[[], None]) -> Callable[[], None]:
            try:
                raise RuntimeError("the first cause\nand more")
            except RuntimeError:
                raise torch.AcceleratorError("operation failed due to a previous error during capture") from None

    with pytest.raises(InputError, match=r"cannot be captured \(the first cause\); start again without `cuda_graphs`"):
        train(GraphedStep(make_step(torch.device("cpu")), Refusing()), some_batches(torch.device("cpu")))


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_GRAPHS > 1
    monkeypatch.setattr("cond_detr.train.cuda_graphs.MAX_GRAPHS", 1)
    device = torch.device("cpu")
    plain, inner = make_step(device), make_step(device)
    recorder = Repeater()
    train(plain, some_batches(device))
    train(GraphedStep(inner, recorder), some_batches(device))
    assert_same(plain, inner, rtol=0, atol=0)
    assert recorder.captured == 2


def test_gradients_share_a_buffer_and_keep_their_layout() -> None:
    network = make_step(torch.device("cpu")).model
    flat = flat_gradients(network)
    flat.fill_(3.0)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad == 3).all(), name
            assert parameter.grad.stride() == parameter.stride(), name
            parameter.grad.zero_()
    assert flat.count_nonzero() < 64 * len(list(network.parameters()))  # the gaps are still 3


def test_a_state_moves_between_captured_and_other_runs() -> None:
    """Learning rates are tensors on the device in the one, numbers in the other."""
    first, second = make_step(torch.device("cpu")), make_step(torch.device("cpu"))
    train(first, some_batches(torch.device("cpu"))[:2])
    state = copy.deepcopy(first.optimizer.state_dict())
    for group in state["param_groups"]:
        group |= {"capturable": True, "lr": torch.tensor(group["lr"])}
    second.model.load_state_dict(first.model.state_dict())
    restore(second.optimizer, state, steps=2)
    for step in (first, second):
        train(step, some_batches(torch.device("cpu"))[2:4])
    assert_same(first, second, rtol=0, atol=0)


def test_obstacles_are_named() -> None:
    config = config_with(0.1)
    network = ConditionalDETR.from_preset("shapes", 3).network
    cuda = torch.device("cuda")
    assert why_not(config, network, torch.device("cpu")) == "cpu is not a CUDA device"
    assert why_not(config, network, cuda) is None
    scipy = replace(config, loss=replace(config.loss, matcher="scipy"))
    assert why_not(scipy, network, cuda) == "the matcher 'scipy' works on the host"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_graphs_on_cuda(dropout: float, accumulate: int) -> None:
    device = torch.device("cuda")
    torch.backends.cudnn.deterministic = True
    plain = make_step(device, dropout, capturable=True)
    inner = make_step(device, dropout, capturable=True)
    recorder: Recorder = CudaRecorder(device)
    graphed = GraphedStep(inner, recorder)
    want = train(plain, some_batches(device), accumulate)
    got = train(graphed, some_batches(device), accumulate)
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-4, atol=1e-4)
    assert_same(plain, inner, rtol=1e-3, atol=1e-4)
    assert sum(slot is not None and slot.replay is not None for slot in graphed.slots.values()) == 2
    assert graphed.replay_update is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [False, True], ids=["uncaptured", "graphs"])
def test_no_synchronisation_on_cuda(graphs: bool) -> None:
    device = torch.device("cuda")
    inner = make_step(device, capturable=True)
    step = GraphedStep(inner, CudaRecorder(device)) if graphs else inner
    batches = some_batches(device)
    train(step, batches)
    train(step, batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(step, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not isinstance(step, GraphedStep) or not step.broken

"""Losses in the place of the transformers package's: the same values, the same gradients, and no read by the host."""

import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import HostReads
from torch import Tensor

pytest.importorskip("transformers")

from transformers.loss.loss_utils import LOSS_MAPPING

from cond_detr_kernels.transformers import classification
from cond_detr_kernels.transformers.criteria import pairs_of_all_layers
from cond_detr_kernels.transformers.losses import LEFT, ORIGINAL, AcceleratedLoss, criterion_of, why_left
from tests.kernels.transformers_inputs import CLASSES, Inputs

pytestmark = pytest.mark.usefixtures("one_thread")
REPLACED = [name for name, loss in ORIGINAL.items() if criterion_of(loss) and criterion_of(loss) not in LEFT]
# Of files that assign objects to queries: those of the losses above, and models of masks, which match inside themselves
LOSS_FILES = {"object_detection", "deformable_detr", "rt_detr", "rf_detr", "d_fine", "grounding_dino", "lw_detr"}
MASK_MODELS = {"eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer", "videomt"}
NO_DETECTORS = {"inkling", "nemotron3_5_transcribe"}
FOCAL = ("ConditionalDetrForObjectDetection", "LwDetrForObjectDetection")
COUNTS = {"none": [0, 0], "one": [1, 0, 1], "some": [7, 0, 3], "thirty": [30, 29, 2], "more than queries": [50, 41]}


@pytest.fixture(autouse=True)
def _ties_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEIMv2 takes the first of as many votes, in whatever order an unstable sort leaves them."""
    argsort = torch.argsort
    monkeypatch.setattr(torch, "argsort", lambda *args, **kwargs: argsort(*args, stable=True, **kwargs))


def result(loss: Any, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All parts of a loss, and the gradients."""
    for each in inputs.leaves.values():
        each.grad = None
    total, parts, _ = loss(**inputs.make())
    total.backward()
    gradients = {name: each.grad for name, each in inputs.leaves.items() if each.grad is not None}
    return {"total": total.detach(), **{name: part.detach() for name, part in parts.items()}}, gradients


def assert_the_same(loss_type: str, inputs: Inputs) -> None:
    losses, gradients = result(ORIGINAL[loss_type], inputs)
    our_losses, our_gradients = result(AcceleratedLoss(loss_type), inputs)
    assert our_losses.keys() == losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(our_losses[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        size = float(gradient.abs().amax()) if gradient.numel() else 0.0
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-5 * max(size, 1e-3))


def test_every_family_is_replaced_or_named() -> None:
    """A new release with a new family fails here until somebody has looked at it."""
    package = Path(sys.modules["transformers"].__file__ or "").parent
    files = [path for path in package.rglob("*.py") if "linear_sum_assignment" in path.read_text()]
    names = {re.sub("^(modular|modeling|processing|loss(_for)?)_", "", path.stem) for path in files}
    assert names <= LOSS_FILES | MASK_MODELS | NO_DETECTORS
    for name, loss in LOSS_MAPPING.items():
        if "Hungarian" in inspect.getsource(sys.modules[loss.__module__]):
            assert criterion_of(loss), name


def test_all_of_this_release_are_known() -> None:
    assert {name: why_left(name) for name in REPLACED} == dict.fromkeys(REPLACED)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("loss_type", REPLACED)
def test_losses_and_gradients(loss_type: str, counts: list[int]) -> None:
    if "Segmentation" in loss_type and not sum(counts):
        pytest.skip("the package fails without masks")
    assert_the_same(loss_type, Inputs(loss_type, counts))


@pytest.mark.parametrize("loss_type", REPLACED)
def test_without_auxiliary_losses(loss_type: str) -> None:
    assert_the_same(loss_type, Inputs(loss_type, [4, 2], auxiliary_loss=False, two_stage=False))


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        ("RTDetrForObjectDetection", {"use_focal_loss": False}),
        ("RTDetrForObjectDetection", {"matcher_alpha": 0.4, "matcher_gamma": 1.5, "focal_loss_gamma": 1.5}),
        ("DFineForObjectDetection", {"max_num_bins": 16, "reg_scale": 8.0, "up": 0.25}),
        ("Deimv2ForObjectDetection", {"use_dense_one_to_one": False, "mal_alpha": 0.5, "focal_loss_gamma": 1.5}),
        ("DeformableDetrForObjectDetection", {"focal_alpha": -1.0}),
        ("LwDetrForObjectDetection", {"group_detr": 1}),
        ("ForObjectDetection", {"eos_coefficient": 1.0, "class_cost": 0.0}),
    ],
)
def test_settings(loss_type: str, settings: dict[str, Any]) -> None:
    assert_the_same(loss_type, Inputs(loss_type, [5, 0, 3], **settings))


@pytest.mark.parametrize("loss_type", REPLACED)
def test_the_host_reads_nothing(loss_type: str) -> None:
    if "Segmentation" in loss_type:
        pytest.skip("mask losses are the package's")
    inputs = Inputs(loss_type, [3, 0, 1])
    result(AcceleratedLoss(loss_type), inputs)
    with HostReads() as reads:
        result(AcceleratedLoss(loss_type), inputs)
    assert not reads.found
    with HostReads() as reads:
        result(ORIGINAL[loss_type], inputs)
    assert reads.found


@pytest.mark.parametrize("loss_type", REPLACED)
def test_the_criterion_brings_no_tensors_to_the_device(loss_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would wait for each."""
    moved: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda module, _: moved.extend([*module.parameters(), *module.buffers()])
    )
    result(AcceleratedLoss(loss_type), Inputs(loss_type, [3, 0, 1]))
    assert not moved


def test_predictions_that_are_not_finite_give_such_a_loss() -> None:
    inputs = Inputs("DeformableDetrForObjectDetection", [3, 1])
    inputs.make()
    inputs.leaves["logits"].data[0, 0, 0, 0] = torch.nan
    losses, _ = result(AcceleratedLoss("DeformableDetrForObjectDetection"), inputs)
    assert losses["total"].isnan()
    assert losses["loss_bbox"].isfinite()


@pytest.mark.parametrize(
    "loss_type", ["ForObjectDetection", "ConditionalDetrForObjectDetection", "LwDetrForObjectDetection"]
)
@pytest.mark.parametrize("label", [-1, CLASSES, CLASSES + 1])
def test_labels_out_of_range(loss_type: str, label: int) -> None:
    """DETR knows a class more, no object, which the package takes in targets as well."""
    inputs = Inputs(loss_type, [3, 2])
    inputs.make()
    inputs.labels[0]["class_labels"][1] = label
    if loss_type == "ForObjectDetection" and label == CLASSES:
        assert_the_same(loss_type, inputs)
        return
    with pytest.raises((RuntimeError, IndexError)):
        result(AcceleratedLoss(loss_type), inputs)


@pytest.mark.parametrize("loss_type", REPLACED)
def test_boxes_of_no_objects(loss_type: str) -> None:
    """An empty list of boxes has no second axis."""
    if "Segmentation" in loss_type:
        pytest.skip("masks")
    inputs = Inputs(loss_type, [3, 0])
    inputs.labels[1]["boxes"] = torch.tensor([])
    assert_the_same(loss_type, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "loss_type", ["ConditionalDetrForObjectDetection", "LwDetrForObjectDetection", "DFineForObjectDetection"]
)
def test_half_precision_is_computed_in_fp32(loss_type: str, dtype: torch.dtype) -> None:
    inputs = Inputs(loss_type, [3, 2])

    def given(kind: torch.dtype) -> Any:
        cast = {
            name: value.to(dtype).to(kind) if isinstance(value, Tensor) else value
            for name, value in inputs.make().items()
        }
        return AcceleratedLoss(loss_type)(**cast)[0]

    assert given(dtype).dtype == torch.float32
    torch.testing.assert_close(given(dtype), given(torch.float32), rtol=1e-5, atol=1e-5)


def test_denoising_queries_of_other_targets() -> None:
    inputs = Inputs("RTDetrForObjectDetection", [3, 2])
    given = inputs.make()
    given["labels"] = given["labels"][::-1]
    with pytest.raises(ValueError, match=r"expected \[4, 6\] denoising queries of the images' targets, got \[6, 4\]"):
        AcceleratedLoss("RTDetrForObjectDetection")(**given)


def test_votes_of_layers() -> None:
    """Query 0 goes to the target of most layers, query 2 to the first of two, query 3 to none."""
    found = torch.tensor([[[0, 1]], [[1, 0]], [[0, 2]], [[2, -1]]])
    pairs = pairs_of_all_layers(found, 4)
    assert pairs.target[:, 0, :3].tolist() == [[0, 0, 0]] * 4
    assert pairs.valid[0, 0].tolist() == [True, True, True, False]
    assert pairs_of_all_layers(found[[0, 1, 1]], 4).target[0, 0, :2].tolist() == [1, 0]


def test_losses_are_pickled_by_their_type() -> None:
    loss = pickle.loads(pickle.dumps(AcceleratedLoss("ForObjectDetection")))
    assert loss.loss_type == "ForObjectDetection"


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_terms_of_focal_loss_far_from_zero(gamma: float) -> None:
    """Where a probability rounds to 1 its logarithm is taken all the same."""
    loss = classification.focal(0.25, gamma)
    x = torch.tensor([-200.0, 0.0, 200.0])
    negative = 0.75 * torch.tensor([0.0, 0.5**gamma * 0.6931472, 200.0])
    torch.testing.assert_close(loss.negative(x), negative)
    torch.testing.assert_close(loss.positive(x, x), negative.flip(0) / 3)

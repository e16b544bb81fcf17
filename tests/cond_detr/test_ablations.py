"""Every model of the paper's tables trains, is saved and read again; what makes no model is refused."""

from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim, export

from cond_detr import DETR, ConditionalDETR, Detector, InputError, preset
from cond_detr.classes import Classes
from cond_detr.config import Config, LossConfig, ModelConfig, configure
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.model import new_network
from cond_detr.models.predictions import Predictions
from cond_detr.models.spatial_query import SpatialQuery, transform, transformation_size
from cond_detr.predict.detections import detections
from cond_detr.presets import as_detr
from cond_detr.settings import declared
from cond_detr.train.criterion import Criterion
from cond_detr.train.optim import make_optimizer
from cond_detr.train.step import TrainStep
from cond_detr.weights.checkpoint import Checkpoint
from tests.cond_detr.test_training import TINY, log, run_train

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = Classes(("a", "b", "c"), (1, 2, 3))
SMALL = preset("shapes")


def choices(section: type, name: str) -> tuple[str, ...]:
    """The values that a setting may have."""
    return declared(section)[name].choices


# Section 4.3, Table 3, Figure 5 and Table 4
CONDITIONAL: list[dict[str, object]] = [
    *({"reference_point": kind} for kind in choices(ModelConfig, "reference_point")),
    *({"spatial_query": scheme} for scheme in choices(ModelConfig, "spatial_query")),
    *({"projection": form} for form in choices(ModelConfig, "projection")),
    {"spatial_query": "csq-i", "projection": "block"},
    {"offset_regression": False},
    {"offset_regression": False, "spatial_query": "csq-t"},
    {"decoder_layers": 1},
]
BASELINE: list[dict[str, object]] = [
    {"reference_point": kind, "offset_regression": offsets}
    for kind, offsets in product(choices(ModelConfig, "reference_point"), (True, False))
]


def configs() -> dict[str, Config]:
    found = {}
    for base, switches in ((SMALL, CONDITIONAL), (as_detr(SMALL), BASELINE)):
        for model, classification in product(switches, ("focal", "softmax")):
            config = replace(
                base,
                model=replace(base.model, **model),  # type: ignore[arg-type]
                loss=replace(base.loss, classification=classification),  # type: ignore[arg-type]
            )
            name = "-".join([base.model.kind, *(f"{k}={v}" for k, v in model.items()), classification])
            found[name] = config
    return found


def taken(step: TrainStep, batch: Batch) -> None:
    assert step.backward(batch, torch.tensor(3.0), last=True).losses.isfinite().all()
    step.update()


@pytest.mark.parametrize("config", configs().values(), ids=configs())
def test_trains_saves_resumes_and_detects(config: Config, tmp_path: Path) -> None:
    network = new_network(config, len(CLASSES)).train()
    optimizer = make_optimizer(network, config.train)
    step = TrainStep(network, network, Criterion(config.loss), optimizer, config.train)
    targets = pad_targets([torch.tensor([0, 2]), torch.tensor([1])], [torch.rand(2, 4) * 0.4 + 0.2, torch.rand(1, 4)])
    batch = Batch(torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8), None, targets, (0, 1), [(48, 32)] * 2)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    for _ in range(2):  # the last layer of the box head starts at zero, and holds gradients back
        taken(step, batch)
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    Checkpoint(tmp_path / "x.pt", config, CLASSES, network.state_dict()).save()
    again = Detector.from_checkpoint(tmp_path / "x.pt")
    assert type(again) is (DETR if config.model.kind == "detr" else ConditionalDETR)
    resumed = make_optimizer(again.network.train(), config.train)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    taken(step, batch)
    taken(TrainStep(again.network, again.network, Criterion(config.loss), resumed, config.train), batch)
    network.eval(), again.network.eval()
    for ours, theirs in zip(again.network(*batch.inputs()), network(*batch.inputs()), strict=True):
        assert torch.equal(ours, theirs)
    found = detections(network(*batch.inputs()), batch.sizes, CLASSES, softmax=network.softmax)[0]
    assert set(found.names) <= {"a", "b", "c"}
    assert found.scores.max() <= 1


def graphs() -> list[str]:
    """Names of configurations whose graphs differ: each value of a setting by itself, and the default once."""
    graph: dict[object, str] = {}
    for name, config in configs().items():
        m = config.model
        reference = m.reference_point if m.kind == "conditional-detr" or m.offset_regression else ""
        if config.loss.classification == "focal" and m.decoder_layers == SMALL.model.decoder_layers:
            key = (m.kind, m.offset_regression, m.spatial_query, m.projection, reference)
            graph.setdefault(key, name)
    return list(graph.values())


@torch.no_grad()
@pytest.mark.parametrize("name", graphs())
def test_exports(name: str) -> None:
    """One graph for any number and size of images. The classification only changes how many scores there are."""
    # layers are traced one by one, and each ablation is of the decoder
    network = new_network(configure(configs()[name], {"encoder_layers": 0, "decoder_layers": 2}), len(CLASSES)).eval()
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    exported = export(network, (torch.randn(2, 3, 32, 48),), dynamic_shapes=sizes).module()
    images = torch.randn(3, 3, 80, 56)
    for ours, theirs in zip(exported(images), network(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "detr", "spatial_query": "csq-p"}, "`spatial_query` belongs to conditional cross-attention"),
        ({"kind": "detr", "projection": "full"}, "`projection` belongs to conditional cross-attention"),
        ({"kind": "detr", "fused_attn": True}, "`fused_attn` belongs to conditional cross-attention"),
        ({"spatial_query": "csq-p", "projection": "block"}, "of which `spatial_query` csq-p has none"),
        ({"kind": "yolo"}, "unknown model 'yolo'; there are conditional-detr, detr"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ({"d_model": 100}, "`d_model` must be a multiple of 4"),
    ],
)
def test_what_makes_no_model(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        new_network(replace(SMALL, model=replace(SMALL.model, **settings)), len(CLASSES))  # type: ignore[arg-type]


def test_another_kind_of_checkpoint(tmp_path: Path) -> None:
    model = DETR.from_preset("shapes", 3)
    Checkpoint(tmp_path / "x.pt", model.config, model.classes, model.network.state_dict()).save()
    with pytest.raises(InputError, match=r"x\.pt is of a DETR, not of a ConditionalDETR"):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")


def test_the_command_trains_and_resumes_plain_detr(dataset_dir: Path, tmp_path: Path) -> None:
    options = [option for option in TINY if option != "--fused-attn"]
    options += ["--model", "detr", "--dataset-dir", str(dataset_dir), "--epochs", "2"]
    assert run_train(*options, "--output-dir", tmp_path / "run") == 0
    config = Checkpoint.load(tmp_path / "run" / "last.pt").config
    assert config == replace(config, model=replace(config.model, kind="detr", reference_point="origin"))
    assert config.loss.classification == "softmax"
    assert len(log(tmp_path / "run")) == 2


def matrix_of(projection: str, numbers: torch.Tensor, d: int, heads: int) -> torch.Tensor:
    """T, written out."""
    if projection == "scalar":
        return numbers * torch.eye(d)
    if projection == "diagonal":
        return torch.diag(numbers)
    if projection == "block":
        return torch.block_diag(*numbers.view(heads, d // heads, d // heads))
    return numbers.view(d, d)


@pytest.mark.parametrize("projection", ["scalar", "diagonal", "block", "full"])
def test_transformations(projection: str) -> None:
    d, heads = 12, 3
    embedding = torch.randn(1, 5, d)
    numbers = torch.randn(2, 5, transformation_size(projection, d, heads))
    got = transform(embedding, numbers, projection, heads)
    for image in range(2):
        for query in range(5):
            matrix = matrix_of(projection, numbers[image, query], d, heads)
            torch.testing.assert_close(got[image, query], matrix @ embedding[0, query])


def test_spatial_queries() -> None:
    """Table 3, each by its definition."""
    embedding, x, attended = torch.randn(1, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    wanted = {
        "csq": lambda scale: scale(x) * embedding,
        "csq-t": lambda scale: scale(x),
        "csq-p": lambda scale: embedding,
        "csq-c": lambda scale: x,
        "csq-i": lambda scale: scale(attended) * embedding,
    }
    for scheme, want in wanted.items():
        module = SpatialQuery(scheme, "diagonal", 16, 4, 2)
        torch.testing.assert_close(module(embedding, x, attended, first=False), want(module.query_scale))
    for scheme in ("csq", "csq-p", "csq-i"):
        assert SpatialQuery(scheme, "diagonal", 16, 4, 2)(embedding, x, attended, first=True) is embedding


def test_softmax_loss_is_torchs_weighted_cross_entropy() -> None:
    """DETR's loss; queries without an object count a tenth. Matched by DETR's cost, minus the probability."""
    torch.manual_seed(3)
    logits, boxes = torch.randn(2, 3, 9, 5), torch.rand(2, 3, 9, 4) * 0.4 + 0.2
    labels = [torch.tensor([1, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 0, 2])]
    target_boxes = [torch.rand(len(label), 4) * 0.4 + 0.2 for label in labels]
    targets = pad_targets(labels, target_boxes)
    criterion = Criterion(LossConfig(classification="softmax", class_weight=1.0))
    predictions = Predictions(logits, boxes)
    got = criterion(predictions, targets, torch.tensor(5.0), share=0.5)
    pred_index, _ = criterion.matcher(predictions, targets)
    wanted = []
    for layer in range(2):
        classes = torch.full((3, 9), 4)
        for image, label in enumerate(labels):
            classes[image, pred_index[layer, image, : len(label)]] = label
        weight = torch.tensor([1.0, 1, 1, 1, 0.1])
        wanted.append(0.5 * F.cross_entropy(logits[layer].transpose(1, 2), classes, weight))
    torch.testing.assert_close(got.classification, wanted[-1])
    only_classes = Criterion(LossConfig(classification="softmax", class_weight=1.0, l1_weight=0.0, giou_weight=0.0))
    # the same matching, so that only the classes' losses are left of the total
    only_classes.matcher = criterion.matcher
    torch.testing.assert_close(only_classes(predictions, targets, torch.tensor(5.0), share=0.5).total, sum(wanted))


def test_softmax_detections_are_the_likeliest_classes() -> None:
    logits = torch.tensor([[[[2.0, 1.0, 0.0], [0.0, 0.5, 9.0], [-1.0, 3.0, 0.0]]]])
    boxes = torch.rand(1, 1, 3, 4)
    (found,) = detections(Predictions(logits, boxes), [(10, 10)], Classes(("a", "b"), (1, 2)), softmax=True)
    assert found.names[:3] == ["b", "a", "b"]
    torch.testing.assert_close(
        found.scores[:2], torch.stack([logits[0, 0, 2].softmax(-1)[1], logits[0, 0, 0].softmax(-1)[0]])
    )
    assert (found.scores[3:] == 0).all()

"""Queries that only training has, queries that are boxes, and losses with IoUs as targets."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_reads import HostReads
from PIL import Image
from torch import Tensor

from cond_detr import ConditionalDETR, InputError
from cond_detr.attention_maps.maps import detection_maps
from cond_detr.boxes import cxcywh_to_xyxy, iou
from cond_detr.config import Config, LossConfig
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.attention import attend_within
from cond_detr.models.decoder import scaled_by_size
from cond_detr.models.model import new_network
from cond_detr.models.network import Network
from cond_detr.models.predictions import Predictions
from cond_detr.models.queries import Queries, QuerySets
from cond_detr.presets import configured
from cond_detr.train.__main__ import main as train_main
from cond_detr.train.criterion import Criterion, matchability_loss, matched_iou, varifocal_loss
from cond_detr.train.cuda_graphs import GraphedStep
from cond_detr.train.optim import make_optimizer, set_lr
from cond_detr.train.step import TrainStep
from cond_detr.train.training_queries import WithTrainingQueries, for_training, noised_boxes, noised_labels
from tests.cond_detr.conftest import exit_code
from tests.cond_detr.test_cuda_graphs import Repeater
from tests.cond_detr.test_training import start_train
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"d_model": 32, "num_heads": 2, "ffn_dim": 32, "decoder_layers": 2, "num_queries": 7}
SWITCHES: dict[str, dict[str, Any]] = {
    "groups": {"query_groups": 3},
    "denoising": {"denoising": 2},
    "boxes": {"queries": "boxes"},
    "varifocal": {"classification": "varifocal"},
    "mal": {"classification": "mal", "denoising": 1},
    "all": {"query_groups": 3, "denoising": 2, "queries": "boxes", "classification": "mal", "dropout": 0.1},
    "learned points": {"query_groups": 2, "denoising": 1, "reference_point": "learned"},
    "softmax": {"query_groups": 2, "denoising": 1, "classification": "softmax"},
    "DETR": {"kind": "detr", "query_groups": 2, "denoising": 1},
}


def config_with(**values: Any) -> Config:
    return configured("shapes", {**TINY, **values})


def batch_of(*counts: int) -> Batch:
    images = torch.randint(0, 256, (len(counts), 3, 32, 48), dtype=torch.uint8)
    padding = torch.zeros(len(counts), 32, 48, dtype=torch.bool)
    padding[0, :, 32:] = True
    boxes = [torch.rand(n, 4) * 0.4 + 0.3 for n in counts]
    targets = pad_targets([torch.randint(0, 3, (n,)) for n in counts], boxes)
    return Batch(images, padding, targets, tuple(range(len(counts))), [(48, 32)] * len(counts))


def trainee(config: Config) -> tuple[Network, torch.nn.Module]:
    torch.manual_seed(0)
    network = new_network(config, 3).train()
    for parameter in network.box_head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network, for_training(network, config.train).train()


def make_step(config: Config) -> TrainStep:
    _, module = trainee(config)
    criterion = Criterion(config.loss, config.train.query_groups, config.train.denoising)
    return TrainStep(module, module, criterion, make_optimizer(module, config.train), config.train)


@pytest.mark.parametrize("groups", [1, 3])
def test_sets_do_not_see_each_other(groups: int) -> None:
    sets, targets, copies, width = QuerySets(groups, 5), 4, 2, 12
    sets = sets._replace(denoising=copies, real=torch.tensor([[True, True, False, False], [False] * 4]))
    length = groups * 5 + copies * targets
    query, key, value = torch.randn(3, 2, length, width, dtype=torch.float64)
    seen = torch.zeros(2, length, length, dtype=torch.bool)
    for first, last in [(5 * i, 5 * i + 5) for i in range(groups)]:
        seen[:, first:last, first:last] = True
    for first in (groups * 5, groups * 5 + targets):
        seen[0, first : first + targets, first : first + 2] = True
    seen |= torch.eye(length, dtype=torch.bool)
    heads = [part.view(2, length, 3, 4).transpose(1, 2) for part in (query, key, value)]
    scores = (heads[0] @ heads[1].mT / 2).masked_fill(~seen[:, None], -math.inf)
    want = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend_within(query, key, value, 3, 0.0, sets), want)


@torch.no_grad()
@pytest.mark.parametrize(
    "switches", [{}, {"queries": "boxes"}, {"kind": "detr"}, {"reference_point": "learned"}], ids=str
)
def test_every_set_predicts_what_a_network_with_these_queries_does(switches: dict[str, Any]) -> None:
    config = config_with(query_groups=3, denoising=2, **switches)
    network, module = trainee(config)
    assert isinstance(module, WithTrainingQueries)
    batch = batch_of(2, 0)
    together = module(*batch.inputs(), batch.targets)
    own = network(*batch.inputs())
    own_queries = network.object_queries()
    assert module.more is not None
    more = module.more()
    for i in range(3):
        queries = own_queries
        if i:
            part = slice(7 * (i - 1), 7 * i)
            embedding = None if more.embedding is None else more.embedding[:, part]
            queries = Queries(embedding, more.reference[:, part])
        alone = network(*batch.inputs(), queries)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[:, :, 7 * i : 7 * i + 7], theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.logits[:, :, :7], own.logits, rtol=1e-4, atol=1e-5)
    assert together.logits.shape[2] == 3 * 7 + 2 * batch.targets.labels.shape[1]


@torch.no_grad()
def test_padded_targets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a wider padding: the copies of real targets get the same predictions."""
    for name in ("noised_boxes", "noised_labels"):
        monkeypatch.setattr(f"cond_detr.train.training_queries.{name}", lambda values, *_: values)
    _, module = trainee(config_with(denoising=1))
    batch = batch_of(2, 3)
    wide = batch.targets._replace(
        labels=torch.nn.functional.pad(batch.targets.labels, (0, 5), value=2),
        boxes=torch.nn.functional.pad(batch.targets.boxes, (0, 0, 0, 5), value=0.9),
    )
    for got, want in zip(module(*batch.inputs(), wide), module(*batch.inputs(), batch.targets), strict=True):
        torch.testing.assert_close(got[:, 1, 7:10], want[:, 1, 7:10], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[:, 0, 7:9], want[:, 0, 7:9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classification", ["focal", "softmax", "varifocal", "mal"])
def test_losses_are_the_mean_over_sets(classification: str) -> None:
    """Groups as criteria of their own; copies of targets as predictions that are matched by their number."""
    torch.manual_seed(0)
    config = LossConfig(classification=classification)  # type: ignore[arg-type]
    classes = 3 + (classification == "softmax")
    targets = pad_targets(
        [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)], [torch.rand(2, 4), torch.rand(0, 4)]
    )
    groups, copies, length = 3, 2, targets.labels.shape[1]
    queries = groups * 6 + copies * length
    predictions = Predictions(
        torch.randn(2, 2, queries, classes, dtype=torch.float64), torch.rand(2, 2, queries, 4, dtype=torch.float64)
    )
    targets = targets._replace(boxes=targets.boxes.double())
    boxes = torch.tensor(2.0)
    got = Criterion(config, groups, copies)(predictions, targets, boxes)

    def part(first: int, last: int) -> Predictions:
        return Predictions(*(values[:, :, first:last] for values in predictions))

    alone = [Criterion(config)(part(6 * i, 6 * i + 6), targets, boxes) for i in range(groups)]
    want = sum(each.total for each in alone) / groups
    torch.testing.assert_close(got.classification, sum(each.classification for each in alone) / groups)
    for i in range(copies):
        first = groups * 6 + i * length
        # only the real targets, of which the first image has two; so each finds itself at no cost
        real = part(first, first + 2)
        real = Predictions(real.logits[:, :1], real.boxes[:, :1])
        criterion = Criterion(config)
        criterion.matcher = lambda found, _: (torch.tensor([0, 1]).expand(len(found.logits), 1, 2), None)  # type: ignore[assignment]
        of_first = type(targets)(targets.labels[:1, :2], targets.boxes[:1, :2], targets.counts[:1])
        want = want + criterion(real, of_first, boxes).total / copies
    torch.testing.assert_close(got.total, want)


def test_losses_with_ious_as_targets_follow_their_papers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    quality = torch.tensor([[0.7, 0.0], [0.0, 0.0], [0.0, 0.3], [0.0, 0.0]], dtype=torch.float64)[None, None]
    matched = quality > 0
    matched[..., 3, 1] = True  # by a box that misses its target
    varifocal, mal = varifocal_loss(logits, quality), matchability_loss(logits, quality, matched)
    assert mal[0, 0, 3, 1].item() == pytest.approx(-math.log(1 - logits[0, 0, 3, 1].sigmoid().item()))
    for i, j in ((0, 0), (0, 1), (1, 1), (2, 1), (3, 0)):
        p, q = logits[0, 0, i, j].sigmoid().item(), quality[0, 0, i, j].item()
        with_target = -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
        want = with_target if q else -0.75 * p**2 * math.log(1 - p)
        assert varifocal[0, 0, i, j].item() == pytest.approx(want)
        t = q**1.5
        want = -(t * math.log(p) + (1 - t) * math.log(1 - p)) if q else -(p**1.5) * math.log(1 - p)
        assert mal[0, 0, i, j].item() == pytest.approx(want)


def test_ious_of_matched_queries() -> None:
    torch.manual_seed(0)
    boxes, targets = torch.rand(2, 2, 5, 4), torch.rand(2, 3, 4)
    index = torch.tensor([[[4, 0, -1], [1, -1, -1]], [[2, 3, -1], [0, -1, -1]]])
    got = matched_iou(boxes, targets, index)
    want = torch.zeros(2, 2, 5)
    for layer, image, target in index.ge(0).nonzero().tolist():
        query = index[layer, image, target]
        pair = boxes[layer, image, query], targets[image, target]
        want[layer, image, query] = iou(*(cxcywh_to_xyxy(box) for box in pair))
    torch.testing.assert_close(got, want)


def test_noise_stays_within_its_bounds() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(1000, 4) * 0.3 + 0.35
    noised = noised_boxes(boxes)
    moved, grown = (noised - boxes)[:, :2].abs() / boxes[:, 2:], noised[:, 2:] / boxes[:, 2:]
    assert moved.max() <= 0.2 + 1e-6
    assert moved.mean().item() == pytest.approx(0.1, abs=0.01)
    assert grown.min() >= 0.6 - 1e-6
    assert grown.max() <= 1.4 + 1e-6
    assert noised_boxes(torch.rand(1000, 4)).min() >= 0
    labels = torch.zeros(10_000, dtype=torch.int64)
    changed = noised_labels(labels, 5)
    assert (changed > 0).float().mean().item() == pytest.approx(0.2 * 4 / 5, abs=0.02)
    assert set(changed.tolist()) == set(range(5))


@torch.no_grad()
def test_boxes_are_refined_from_layer_to_layer() -> None:
    """Each layer's boxes are offsets from those of the layer before, and the first one's from the queries."""
    network, _ = trainee(config_with(queries="boxes", decoder_layers=3))
    network.eval()
    images = torch.randn(2, 3, 32, 48)
    kept: list[Tensor] = []
    hook = network.box_head.register_forward_hook(lambda _, __, output: kept.append(output))
    boxes = network(images).boxes
    hook.remove()
    assert len(kept) == 3
    reference = network.object_queries().reference
    for layer, raw in enumerate(kept):
        want = (raw + torch.logit(reference, eps=1e-5)).sigmoid()
        torch.testing.assert_close(boxes[layer], want)
        reference = want
    assert (boxes[0] - boxes[2]).abs().max() > 0.01


def test_spatial_queries_of_wide_boxes_look_far_to_the_sides() -> None:
    spatial, boxes = torch.ones(1, 1, 4), torch.tensor([[[0.5, 0.5, 0.2, 0.1]]])
    got = scaled_by_size(spatial, torch.tensor([[[0.4, 0.3]]]), boxes)
    torch.testing.assert_close(got, torch.tensor([[[3.0, 3.0, 2.0, 2.0]]]))


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_a_step_trains_everything_and_asks_the_host_for_nothing(switches: dict[str, Any]) -> None:
    step, batch = make_step(config_with(**switches)), batch_of(2, 0, 3)
    before = {name: tensor.clone() for name, tensor in step.model.named_parameters()}
    boxes = batch.targets.counts.sum()

    def train() -> None:
        set_lr(step.optimizer, 0.5)
        assert step.backward(batch, boxes, last=True).losses.isfinite().all()
        step.update()

    train()
    train()
    for name, parameter in step.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    with HostReads() as reads:
        set_lr(step.optimizer, 0.5)
        step.backward(batch, boxes, last=True)
        step.update()
    assert not reads.found


@pytest.mark.parametrize("switches", [SWITCHES["groups"], SWITCHES["denoising"], SWITCHES["all"]], ids=str)
def test_captured_steps_are_the_same(switches: dict[str, Any]) -> None:
    config = config_with(**switches)
    plain, recorder = make_step(config), Repeater()
    graphed = GraphedStep(make_step(config), recorder)
    torch.manual_seed(5)
    batches = [batch_of(1, 3), batch_of(4, 0), batch_of(2, 2)]
    for number, batch in enumerate(batches):
        losses = []
        for step in (plain, graphed):
            torch.manual_seed(number)
            losses.append(step.backward(batch, batch.targets.counts.sum(), last=True).losses)
            step.update()
        assert torch.equal(*losses)
    assert recorder.replayed > 0
    for ours, theirs in zip(graphed.step.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_matching_call_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    step, batch, calls = make_step(config_with(query_groups=4)), batch_of(2, 1), []
    matcher = step.criterion.matcher
    monkeypatch.setattr(matcher, "match", lambda *a, _own=matcher.match, **k: calls.append(a) or _own(*a, **k))
    step.backward(batch, batch.targets.counts.sum(), last=True)
    assert [call[0].shape[:3] for call in calls] == [(4 * 2, 2, 7)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=12, val=3)


OPTIONS = ["--preset", "shapes", "--num-queries", "9", "--decoder-layers", "2", "--encoder-layers", "1"]
OPTIONS += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--fused-attn"]
EVERYTHING = [
    "--query-groups",
    "3",
    "--denoising",
    "2",
    "--queries",
    "boxes",
    "--classification",
    "mal",
    "--ema",
    "0.9",
]
EVERYTHING += ["--accumulate", "2", "--dropout", "0.1", "--mosaic", "0.5", "--colour", "0.3", "--zoom", "0.3"]


def test_saves_the_first_set_alone(data: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, *EVERYTHING, "--dataset-dir", data, "--epochs", 1, "--output-dir", tmp_path]
    assert exit_code(train_main, *options) == 0
    last, best = (torch.load(tmp_path / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert "more.reference_point.points" in last["queries"]
    assert "queries" not in best
    settings: dict[str, Any] = {"num_queries": 9, "decoder_layers": 2, "encoder_layers": 1, "queries": "boxes"}
    plain = ConditionalDETR.from_preset("shapes", 6, **settings).network.state_dict()
    assert {n: t.shape for n, t in best["model"].items()} == {n: t.shape for n, t in plain.items()}


def test_a_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [*OPTIONS, *EVERYTHING, "--dataset-dir", data, "--epochs", 2, "--output-dir"]
    assert exit_code(train_main, *common, tmp_path / "whole") == 0

    def stop(*_: object) -> None:
        raise InputError("stopped")

    with monkeypatch.context() as patch:
        from cond_detr.train.loop import Trainer

        own = Trainer._train_epoch
        patch.setattr(Trainer, "_train_epoch", lambda self, *a: stop() if self.progress.epoch else own(self, *a))
        assert exit_code(train_main, *common, tmp_path / "cut") == 2
    assert exit_code(train_main, "--resume", tmp_path / "cut" / "last.pt", "--workers", 0, "--device", "cpu") == 0
    cut, whole = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("cut", "whole"))
    for part in ("model", "average", "queries"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, cut[part][name]), name
    assert (tmp_path / "cut" / "log.jsonl").read_text().count("\n") == 2


def test_resume_wants_the_queries_of_the_run(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, "--dataset-dir", data, "--epochs", 1, "--query-groups", 2, "--output-dir", run]
    assert exit_code(train_main, *options) == 0
    assert json.loads((run / "config.json").read_text())["train"]["query_groups"] == 2
    content = torch.load(run / "last.pt", weights_only=True)
    del content["queries"]
    torch.save(content, run / "last.pt")
    capfd.readouterr()
    assert exit_code(train_main, "--resume", run / "last.pt", "--device", "cpu", "--epochs", 2) == 2
    assert "is of other --query-groups or --denoising: 1 tensors differ, such as more.query" in capfd.readouterr().err


def test_detection_is_what_it_was(data: Path, tmp_path: Path) -> None:
    """The model of a run with training queries is a plain one: its file, its speed, its maps."""
    options = [*OPTIONS, "--dataset-dir", data, "--epochs", 1, "--output-dir"]
    assert exit_code(train_main, *options, tmp_path / "plain") == 0
    assert exit_code(train_main, *options, tmp_path / "more", "--query-groups", 3, "--denoising", 2) == 0
    sizes = [(tmp_path / name / "best.pt").stat().st_size for name in ("plain", "more")]
    assert abs(sizes[0] - sizes[1]) < 1000
    plain, more = (ConditionalDETR.from_checkpoint(tmp_path / name / "best.pt") for name in ("plain", "more"))
    assert [n for n, _ in plain.network.named_modules()] == [n for n, _ in more.network.named_modules()]


def test_a_process_without_objects_takes_part(tmp_path: Path) -> None:
    """Of two processes one has nothing to make noise of."""
    dataset = write_dataset(tmp_path / "data", train=8, val=2)
    path = dataset / "annotations" / "instances_train.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "annotations": raw["annotations"][:1]}))
    options = [*OPTIONS, *EVERYTHING[:-6], "--dataset-dir", dataset, "--epochs", 1, "--output-dir", tmp_path / "run"]
    process = start_train(*options, "--batch-size", 2, processes=2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output


@torch.no_grad()
def test_boxes_in_every_room(tmp_path: Path) -> None:
    sizes = {"num_queries": 9, "encoder_layers": 1, "decoder_layers": 2}
    model = ConditionalDETR.from_preset("shapes", 3, queries="boxes", **sizes)
    model.save(tmp_path / "x.pt")
    again = ConditionalDETR.from_checkpoint(tmp_path / "x.pt")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8))
    ours, theirs = model.predict(image, threshold=0.0), again.predict(image, threshold=0.0)
    assert torch.equal(ours.boxes, theirs.boxes)
    assert len(detection_maps(again, image, 2)) == 2
    model.export(tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").stat().st_size > 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no groups": ({"query_groups": 0}, "`query_groups` must be a whole number of at least 1"),
    "half a copy": ({"denoising": 0.5}, "`denoising` must be a whole number of at least 0"),
    "boxes of DETR": ({"kind": "detr", "queries": "boxes"}, "`queries` belongs to conditional cross-attention"),
    "boxes without place": ({"queries": "boxes", "spatial_query": "csq-c"}, "which `spatial_query` csq-c leaves out"),
    "boxes with points": ({"queries": "boxes", "reference_point": "learned"}, "`reference_point` learned belongs to"),
    "boxes without offsets": ({"queries": "boxes", "offset_regression": False}, "`offset_regression` must be True"),
    "neither": ({"queries": "circles"}, "`queries` must be one of points, boxes, got 'circles'"),
    "zoom to nothing": ({"zoom": 1.0}, "`zoom` must be a number of at least 0 and below 1"),
}


@pytest.mark.parametrize(("values", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_combinations_get_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        ConditionalDETR.new(configured("shapes", values), ConditionalDETR.from_preset("shapes", 2).classes)
    assert sentence in str(caught.value)

"""What a trained model has learnt: its heads look at the sides of boxes, as the paper says (Figures 1 and 4)."""

import itertools
from pathlib import Path

import pytest
import torch
from convergence_bench import Run, backbone_weights, train
from torch import Tensor

from cond_detr import Detector
from cond_detr.attention_maps import detection_maps, side_shares
from cond_detr.data import shapes

IMAGES = 60
# In fractions of the image: narrower boxes' bands are less than a position wide
LEAST_SIDE = 0.3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    root: Path = tmp_path_factory.mktemp("trained")
    backbone_weights(root)
    run = Run("Conditional DETR", (), seed=1, epochs=6)
    row = train(run, root, threads=torch.get_num_threads())
    print(f"AP {row['curve'][-1][1]:.3f}")
    return Detector.from_checkpoint(run.folder(root) / "best.pt")


def mean_side_shares(model: Detector) -> dict[str, Tensor]:
    """(layers, heads) for each side: the mean share of spatial weight near it, over confident, large detections."""
    annotations, load = shapes.make_split("val", IMAGES)
    layers = range(len(model.decoder.layers))  # type: ignore[arg-type]
    found: list[list[dict[str, Tensor]]] = [[] for _ in layers]
    for record, layer in itertools.product(annotations.records, layers):
        for maps in detection_maps(model, load(record.file_name, record.size), count=4, layer=layer):
            if maps.score >= 0.5 and (maps.box[2:] - maps.box[:2]).min() >= LEAST_SIDE:
                found[layer].append(side_shares(maps.spatial, maps.box))
    assert len(found[0]) >= 20
    return {
        side: torch.stack([torch.stack([shares[side] for shares in of_layer]).mean(0) for of_layer in found])
        for side in found[0][0]
    }


def test_each_side_of_a_box_has_its_head(trained: Detector) -> None:
    """For each side, some head puts half of its spatial weight within a quarter of the box's size of it."""
    shares = mean_side_shares(trained)
    best = {side: share.max().item() for side, share in shares.items()}
    heads = {side: divmod(int(share.argmax()), share.shape[1]) for side, share in shares.items()}
    print(best, heads)
    assert min(best.values()) >= 0.5, best
    assert len(set(heads.values())) == 4, "one head looks at two sides"

"""What a trained model has learnt: its heads look at the sides of boxes, as the paper says (Figures 1 and 4)."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from cond_detr import Detector
from cond_detr.attention_maps.maps import detection_maps, side_shares
from cond_detr.data import shapes

# Seed 1 of the recorded convergence_bench.py, after its 18 epochs
TRAINED = Path(__file__).parents[2] / "benchmarks/results/cpu/dc5_shapes.safetensors"
IMAGES = 150
# In fractions of the image: the bands at the sides of narrower boxes are hardly wider than a position
LEAST_SIDE = 0.3


def mean_side_shares(model: Detector) -> dict[str, Tensor]:
    """(layers, heads) for each side: the mean share of spatial weight near it, over confident, large detections."""
    annotations, load = shapes.make_split("val", IMAGES)
    layers = range(len(model.network.decoder.layers))  # type: ignore[arg-type]
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


def best_heads(model: Detector) -> dict[str, tuple[int, int, float]]:
    """Layer, head and mean share of the head that keeps closest to each side."""
    found = {}
    for side, shares in mean_side_shares(model).items():
        layer, head = divmod(int(shares.argmax()), shares.shape[1])
        found[side] = (layer, head, shares.max().item())
    return found


def test_each_side_of_a_box_has_its_head() -> None:
    """For each side, a head puts half of its spatial weight within a quarter of the box's size of it, on average."""
    best = best_heads(Detector.from_checkpoint(TRAINED))
    print(best)
    assert min(share for *_, share in best.values()) >= 0.5, best
    assert len({(layer, head) for layer, head, _ in best.values()}) == 4, "one head looks at two sides"


def test_an_untrained_decoder_has_no_such_heads() -> None:
    """So the test above measures what was learnt."""
    model = Detector.from_checkpoint(TRAINED)
    for parameter in model.network.decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_uniform_(parameter)
    with torch.no_grad():  # sure of everything, so that enough is measured
        model.network.class_head.bias.fill_(5.0)
        model.network.box_head.layers[-1].bias[2:].zero_()
    assert max(share for *_, share in best_heads(model).values()) < 0.4

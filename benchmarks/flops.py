"""Parameters and multiply-adds of the paper's eight models, beside the paper's columns.

The paper counts over the first 100 images of COCO's validation set, whose sizes it does not list. Here the counts are
averaged over the two most frequent sizes of COCO's images, 640 x 480 and 640 x 427, which become 800 x 1066 and
800 x 1199 pixels. Exits with 1 if a count is more than 2 % from the paper's.
"""

import statistics
import sys

import torch
from common import Row, arguments, print_table, write_json
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cond_detr import DETR, ConditionalDETR, Detector

SIZES = ((800, 1066), (800, 1199))
NUM_CLASSES = 91
TOLERANCE = 0.02
# Tables 1 and 2 of the paper: millions of parameters, 10^9 multiply-adds
PAPER = {
    (DETR, "r50"): (41, 86),
    (DETR, "dc5-r50"): (41, 187),
    (DETR, "r101"): (60, 152),
    (DETR, "dc5-r101"): (60, 253),
    (ConditionalDETR, "r50"): (44, 90),
    (ConditionalDETR, "dc5-r50"): (44, 195),
    (ConditionalDETR, "r101"): (63, 156),
    (ConditionalDETR, "dc5-r101"): (63, 262),
}
COLUMNS = {
    "model": "",
    "height": "d",
    "width": "d",
    "params_m": ".1f",
    "paper_params_m": "d",
    "gmacs": ".1f",
    "paper_gflops": "d",
}


def multiply_adds(network: nn.Module, height: int, width: int) -> float:
    """In 10^9, of one image. Nothing is computed: the network is on the meta device, where tensors have shapes only."""
    # spelled out as products, which are counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, height, width, device="meta"))
    total: int = counter.get_total_flops()
    return total / 2e9


def rows_of(kind: type[Detector], name: str) -> list[Row]:
    """One for each size, and the mean."""
    network = kind.from_preset(name, NUM_CLASSES).network.to("meta").eval().requires_grad_(False)
    params, gflops = PAPER[kind, name]
    title = f"{'DETR' if kind is DETR else 'Conditional DETR'} {name}"
    shared = {"model": title, "params_m": sum(p.numel() for p in network.parameters()) / 1e6}
    rows: list[Row] = [
        {**shared, "height": height, "width": width, "gmacs": multiply_adds(network, height, width)}
        for height, width in SIZES
    ]
    mean = statistics.mean(row["gmacs"] for row in rows)
    return [*rows, {**shared, "gmacs": mean, "paper_params_m": params, "paper_gflops": gflops}]


def differs(row: Row) -> bool:
    """Whether a row with the paper's numbers is too far from them."""
    return "paper_gflops" in row and (
        abs(row["gmacs"] / row["paper_gflops"] - 1) > TOLERANCE
        or abs(row["params_m"] / row["paper_params_m"] - 1) > TOLERANCE
    )


def main() -> int:
    """Counts and prints; 1 if a count is too far from the paper's."""
    options = arguments(__doc__).parse_args()
    rows = [row for kind, name in PAPER for row in rows_of(kind, name)]
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, "flops", f"counted, torch {torch.__version__}", rows)
    far = [row["model"] for row in rows if differs(row)]
    if far:
        print(f"more than {TOLERANCE:.0%} from the paper: {', '.join(far)}", file=sys.stderr)
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())

"""Conditional cross-attention, and the encoder's self-attention: the fused path against what a user could take instead.

Every implementation is first compared with the formula in fp64; one that is wrong is not timed. On a CUDA device calls
are timed as CUDA graphs, so that small batches measure the device and not the launches.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from attn_alternatives import Attend, implementations
from common import Record, Row, arguments, first_line, interleaved, machine, percentiles, print_table, ratio_axis, timed
from torch import Tensor
from tqdm import tqdm

from cond_detr_kernels import attention_path
from cond_detr_kernels.conditional_attention import conditional_attention_reference

HEADS, QUERIES, DIM = 8, 300, 32
COLUMNS = {
    "attention": "",
    "impl": "",
    "batch": "d",
    "keys": "d",
    "dtype": "",
    "dropout": "",
    "padded": "",
    "pass": "",
    "us": ".1f",
    "us_p20": ".1f",
    "us_p80": ".1f",
    "times_fused": ".2f",
    "tflops": ".1f",
    "roofline": ".2f",
    "peak_mb": ".0f",
    "max_error": ".1e",
}
# Largest error, relative to the largest output, for an implementation to be timed
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2}


class Speeds(NamedTuple):
    """What a device can do at most, per second: matrix FLOP for operands of 2 and 4 bytes, exponentials, bytes."""

    flop_half: float
    flop_tf32: float
    exp: float
    bytes: float


# Assumed sustained rates, for the roofline only; not measured here
SPEEDS = {"H200": Speeds(790e12, 395e12, 3.7e12, 4.3e12), "H100": Speeds(790e12, 395e12, 3.7e12, 2.9e12)}


@dataclass(frozen=True)
class Setting:
    """A problem. ``attention`` is "cross", or "encoder": of every key to all, content alone."""

    batch: int
    keys: int
    dtype: torch.dtype
    dropout: float
    padded: bool
    backward: bool
    attention: str = "cross"

    @property
    def queries(self) -> int:
        """As many as keys in the encoder."""
        return QUERIES if self.attention == "cross" else self.keys

    @property
    def parts(self) -> int:
        """Of queries and keys: content and spatial part, or content alone."""
        return 2 if self.attention == "cross" else 1

    @property
    def flop(self) -> float:
        """Of the matrix products.

        A product for each part of the scores and one with the values; in the backward pass the scores again, two
        products for each part, and two for the values.
        """
        products = self.parts + 1 + self.backward * (3 * self.parts + 2)
        return 2.0 * self.batch * HEADS * self.queries * self.keys * DIM * products

    def seconds_at_best(self, speeds: Speeds) -> float:
        """The slowest of matrix products, exponentials and memory."""
        rows = (self.parts + 1) * (self.queries + self.keys)
        size = torch.finfo(self.dtype).bits // 8
        traffic = self.batch * HEADS * DIM * size * rows * (1 + 2 * self.backward)
        exponentials = self.batch * HEADS * self.queries * self.keys * (1 + self.backward)
        flop = speeds.flop_half if size == 2 else speeds.flop_tf32
        return max(self.flop / flop, exponentials / speeds.exp, traffic / speeds.bytes)


def reason_against(name: str, setting: Setting) -> str | None:
    """Why an implementation has no row for a setting."""
    if name in ("flex", "flash4") and setting.dropout:
        return "has no dropout"
    if name == "sdpa" and setting.attention == "cross":
        return "is one of the backends, which have rows"
    if name == "sdpa_cudnn" and setting.dropout:
        return "cuDNN's dropout takes multiples of 1/16 only"
    if name in ("sdpa_cudnn", "sdpa_flash", "flash4") and setting.dtype == torch.float32:
        return "has no fp32"
    if name == "sdpa_flash" and setting.padded:
        return "has no key mask"
    if name == "flex" and setting.dtype == torch.float32:
        return "left out, as every variant takes seconds to compile"
    return None


def operands(setting: Setting, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
    """Views of projections, (B, N, H, D) transposed, as the model makes them; padded at the right and at the bottom."""
    spatial = DIM if setting.attention == "cross" else 0
    sizes = [(setting.queries, DIM), (setting.queries, spatial)]
    sizes += [(setting.keys, DIM), (setting.keys, spatial), (setting.keys, DIM)]
    shapes = [(setting.batch, length, HEADS, dim) for length, dim in sizes]
    # not the device's own generator: a capture that fails can leave that unusable
    generator = torch.Generator(device).manual_seed(0)
    tensors = [
        torch.randn(shape, device=device, generator=generator).to(setting.dtype).transpose(1, 2) for shape in shapes
    ]
    if not setting.padded:
        return tensors, None
    key = torch.arange(setting.keys, device=device)
    return tensors, ((key % 35 >= 28) | (key >= 0.9 * setting.keys)).expand(setting.batch, -1)


def largest_error(attend: Attend, setting: Setting, device: torch.device) -> float:
    """Of the output, and of gradients if there are any, against fp64 without dropout, relative to the largest element.

    At the setting's batch, on which the configuration of the kernels depends.
    """
    tensors, mask = operands(setting, device)
    inputs = differentiable(tensors) if setting.backward else []
    out = attend(*tensors, key_padding_mask=mask, dropout_p=0.0)
    grad = torch.randn_like(out)
    found = [out, *(torch.autograd.grad(out, inputs, grad) if inputs else [])]
    errors, largest = [0.0] * len(found), [0.0] * len(found)
    for image in range(setting.batch):  # one at a time: in fp64 the scores of a batch are large
        here = slice(image, image + 1)
        exact = [tensor[here].detach().double() for tensor in tensors]
        exact_inputs = differentiable(exact) if inputs else []
        want = conditional_attention_reference(*exact, key_padding_mask=None if mask is None else mask[here])
        wanted = [want, *(torch.autograd.grad(want, exact_inputs, grad[here].double()) if inputs else [])]
        for i, (got, exactly) in enumerate(zip(found, wanted, strict=True)):
            errors[i] = max(errors[i], (got[here].double() - exactly).abs().nan_to_num(math.inf).max().item())
            largest[i] = max(largest[i], exactly.abs().max().item())
    return max(error / size for error, size in zip(errors, largest, strict=True))


def differentiable(tensors: list[Tensor]) -> list[Tensor]:
    """Those that have gradients: a spatial part of no width has none."""
    return [tensor.requires_grad_() for tensor in tensors if tensor.numel()]


def make_call(attend: Attend, setting: Setting, device: torch.device) -> Callable[[], object]:
    """What is timed: a forward pass without gradients, or a forward and a backward pass."""
    tensors, mask = operands(setting, device)
    if not setting.backward:

        def forward() -> object:
            with torch.no_grad():
                return attend(*tensors, key_padding_mask=mask, dropout_p=setting.dropout)

        return forward
    inputs = differentiable(tensors)
    grad = torch.randn(setting.batch, setting.queries, HEADS, DIM, device=device).to(setting.dtype).transpose(1, 2)

    def both() -> object:
        return torch.autograd.grad(attend(*tensors, key_padding_mask=mask, dropout_p=setting.dropout), inputs, grad)

    return both


class Replays:
    """A CUDA graph of several calls. It keeps ``call``, and with it the operands, whose memory the graph reads."""

    CALLS = 10

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                for _ in range(self.CALLS):
                    call()
        stream.synchronize()

    def __call__(self) -> float:
        """Replays the graph once; the microseconds of a call in it, by the device's clock."""
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        self.graph.replay()
        after.record()
        after.synchronize()
        milliseconds: float = before.elapsed_time(after)
        return milliseconds * 1e3 / self.CALLS


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float | None:
    """Most memory that a call has allocated beyond its operands; CUDA only."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def settings(device: torch.device, quick: bool) -> Iterator[Setting]:
    """All that is measured, what matters most first."""
    cuda = device.type == "cuda"
    dtypes = (torch.bfloat16, torch.float32) if cuda else (torch.float32,)
    for keys, attention in product((1050, 4200), ("cross", "encoder")):
        for case in product(batches(attention, keys, cuda, quick), dtypes, (0.1, 0.0), (True, False), (True, False)):
            batch, dtype, dropout, mask, backward = case
            # batches are padded, single images are not
            if not quick or mask == (batch > 1):
                yield Setting(batch, keys, dtype, dropout, mask, backward, attention)


def batches(attention: str, keys: int, cuda: bool, quick: bool) -> tuple[int, ...]:
    """Those for which a call takes a CPU less than seconds, and for which all scores fit into a GPU's memory."""
    small = keys == 1050
    if attention == "encoder":
        if not cuda:
            return (2,) if small else ()
        return ((8,) if small else (2,)) if quick else (8, 2)
    if not cuda:
        return ((2,) if small else ()) if quick else (2, 1) if small else (1,)
    return (8, 1) if quick else (8, 1, 2, 32)


TINY = [Setting(1, 70, torch.float32, 0.0, True, True, attention) for attention in ("cross", "encoder")]


Sample = Callable[[], float]


def prepare(attend: Attend, setting: Setting, device: torch.device) -> tuple[Sample, float | None]:
    """What is timed, and the memory that it takes."""
    call = make_call(attend, setting, device)
    peak = peak_megabytes(call, device)
    return (Replays(call) if device.type == "cuda" else timed(call, device)), peak


def measure(
    table: dict[str, Attend], setting: Setting, device: torch.device, seconds: float, errors: dict[object, float]
) -> Iterator[Row | str]:
    """A row for each implementation, or a sentence about why there is none."""
    samples: dict[str, Sample] = {}
    known: dict[str, Row] = {}
    for name, attend in table.items():
        if reason_against(name, setting):
            continue
        try:
            key = (name, replace(setting, dropout=0.0))
            if key not in errors:
                errors[key] = largest_error(attend, setting, device)
            error = errors[key]
            if not error < TOLERANCE[setting.dtype]:
                yield f"{name}: error {error:.1e} against fp64 for {setting}"
                continue
            samples[name], peak = prepare(attend, setting, device)
            known[name] = {"peak_mb": peak, "max_error": error}
        # whatever an alternative raises must not cost the others their rows
        except Exception as problem:
            yield f"{name}: {first_line(problem)} for {setting}"
            if device.type == "cuda":
                torch.cuda.empty_cache()
    times = interleaved(samples, seconds * len(samples)) if samples else {}
    best = next((s for key, s in SPEEDS.items() if device.type == "cuda" and key in machine(device)), None)
    for name, values in times.items():
        us = statistics.median(values)
        yield {
            "attention": setting.attention,
            "impl": name,
            "batch": setting.batch,
            "queries": setting.queries,
            "keys": setting.keys,
            "dtype": str(setting.dtype).removeprefix("torch."),
            "dropout": setting.dropout,
            "padded": setting.padded,
            "pass": "fwd_bwd" if setting.backward else "fwd",
            **percentiles(values),
            "times_fused": us / statistics.median(times["fused"]) if "fused" in times else None,
            "tflops": setting.flop / us / 1e6,
            "roofline": setting.seconds_at_best(best) * 1e6 / us if best else None,
            **known[name],
        }


def run(device: torch.device, chosen: list[Setting], seconds: float, record: Record) -> bool:
    """Fills the record. Returns whether ours has all its rows of cross-attention, which it must."""
    table = implementations(device, record.note)
    errors: dict[object, float] = {}
    complete = True
    for setting in tqdm(chosen, unit="setting", leave=False, disable=None):
        rows = []
        for found in measure(table, setting, device, seconds, errors):
            if isinstance(found, str):
                record.note(found)
            else:
                rows.append(found)
        record.add(rows)
        complete &= setting.attention != "cross" or any(row["impl"] == "fused" for row in rows)
    return complete


def picture(rows: list[Row], title: str) -> object:
    """A panel per attention, pass and dropout: how many times longer than fused each alternative takes.

    Of batches that are padded and single images that are not, as they are met.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["padded"] == (row["batch"] > 1)] or rows
    panels = sorted({(row["attention"], row["pass"], row["dropout"]) for row in rows})
    names = list(dict.fromkeys(row["impl"] for row in rows if row["impl"] != "fused"))
    figure = Figure(figsize=(5.5 * math.ceil(len(panels) / 2), 8), layout="constrained")
    axes = list(figure.subplots(2, math.ceil(len(panels) / 2), squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        attention, kind, dropout = panel
        draw_panel(axis, [row for row in rows if (row["attention"], row["pass"], row["dropout"]) == panel], names)
        passes = "forward" if kind == "fwd" else "forward + backward"
        axis.set_title(f"{attention}: {passes}, dropout {dropout}", fontsize=10)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_panel(axis: Any, rows: list[Row], names: list[str]) -> None:
    """A group of bars per problem, and in it one for each of the alternatives that could do it."""
    places = sorted({place_of(row) for row in rows})
    for i, name in enumerate(names):
        ratios = {place_of(row): row["times_fused"] for row in rows if row["impl"] == name}
        where = [j for j, place in enumerate(places) if ratios.get(place)]
        heights = [ratios[places[j]] for j in where]
        width = 0.8 / len(names)
        axis.bar([j + i * width for j in where], heights, width, color=f"C{i}", align="edge")
        axis.bar([0], [0], color=f"C{i}", label=name)  # for the legend, also of what has no bar here
    labels = [f"{dtype}\n{keys} keys\nbatch {batch}" for dtype, keys, batch in places]
    axis.set_xticks([j + 0.4 for j in range(len(places))], labels, fontsize=6)
    ratio_axis(axis, "time / time of fused")


def place_of(row: Row) -> tuple[str, int, int]:
    """What a group of bars belongs to: dtype, keys and batch."""
    return row["dtype"], row["keys"], row["batch"]


def main() -> int:
    """Measures, prints the table, and writes rows and picture if wanted; 1 if ours lacks a row of cross-attention."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--tiny", action="store_true", help="two small problems, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=0.0, help="time for each row (default: 0.2 on CUDA, 0.3)")
    parser.add_argument(
        "--matmul-precision",
        choices=("highest", "high", "medium"),
        default="high",
        help="of fp32 products, everybody's: torch.set_float32_matmul_precision (default: high, as training has it)",
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(options.matmul_precision)
    where = machine(device)
    print(f"{where}; fused: {attention_path(device)}; fp32 products: {options.matmul_precision}")
    seconds = options.seconds or (0.2 if device.type == "cuda" else 0.3)
    chosen = TINY if options.tiny else list(settings(device, options.quick))
    record = Record(options.json, "attn_bench", where, matmul_precision=options.matmul_precision)
    complete = run(device, chosen, seconds, record)
    print_table(record.rows, COLUMNS)
    record.finish(picture)
    # an alternative that does not work here is worth a note; ours must
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())

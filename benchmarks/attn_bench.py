"""Conditional cross-attention: the fused path against everything a user could take instead.

Every implementation is first compared with the formula in fp64; one that is wrong is not timed. On a CUDA device calls
are timed as CUDA graphs, so that small batches measure the device and not the launches.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import Row, arguments, interleaved, machine, percentiles, print_table, ratio_axis, timed, write_json
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from cond_detr_kernels import attention_path, conditional_attention
from cond_detr_kernels.conditional_attention import conditional_attention_reference

HEADS, QUERIES, DIM = 8, 300, 32
COLUMNS = {
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
    batch: int
    keys: int
    dtype: torch.dtype
    dropout: float
    padded: bool
    backward: bool

    @property
    def flop(self) -> float:
        """Of the matrix products: three products of a head forward, eight more backward (scores computed again)."""
        return 2.0 * self.batch * HEADS * QUERIES * self.keys * DIM * (3 + 8 * self.backward)

    def seconds_at_best(self, speeds: Speeds) -> float:
        """The slowest of matrix products, exponentials and memory."""
        rows = QUERIES * 2 + self.keys * 3 + QUERIES
        size = torch.finfo(self.dtype).bits // 8
        traffic = self.batch * HEADS * DIM * size * rows * (1 + 2 * self.backward)
        exponentials = self.batch * HEADS * QUERIES * self.keys * (1 + self.backward)
        flop = speeds.flop_half if size == 2 else speeds.flop_tf32
        return max(self.flop / flop, exponentials / speeds.exp, traffic / speeds.bytes)


Attend = Callable[..., Tensor]


def original(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """As DETR's published code computes it: concatenate, bmm, softmax, dropout, bmm, and the averaged weights."""
    batch, heads = q_content.shape[:2]
    query = torch.cat([q_content, q_spatial], -1).flatten(0, 1)
    key = torch.cat([k_content, k_spatial], -1).flatten(0, 1)
    scores = torch.bmm(query * query.shape[-1] ** -0.5, key.mT).unflatten(0, (batch, heads))
    if key_padding_mask is not None:
        scores = scores.masked_fill(key_padding_mask[:, None, None], -math.inf)
    weights = F.dropout(F.softmax(scores, dim=-1), dropout_p)
    out = torch.bmm(weights.flatten(0, 1), value.flatten(0, 1)).unflatten(0, (batch, heads))
    weights.sum(dim=1).div_(heads)
    return out


def sdpa(
    q_content: Tensor,
    q_spatial: Tensor,
    k_content: Tensor,
    k_spatial: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    backend: SDPBackend,
) -> Tensor:
    query, key = torch.cat([q_content, q_spatial], -1), torch.cat([k_content, k_spatial], -1)
    mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
    value_dim = value.shape[-1]
    if backend == SDPBackend.FLASH_ATTENTION:  # takes equal head dims only
        value = F.pad(value, (0, query.shape[-1] - value_dim))
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
    return out[..., :value_dim]


def make_flex() -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # a variant for each setting; falling back to the uncompiled function would measure something else
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(flex_attention, dynamic=False)
    masks: dict[tuple[int, ...], Any] = {}  # made once for all layers and steps, as users do

    def flex(
        q_content: Tensor,
        q_spatial: Tensor,
        k_content: Tensor,
        k_spatial: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        query, key = torch.cat([q_content, q_spatial], -1), torch.cat([k_content, k_spatial], -1)
        block_mask = None
        if key_padding_mask is not None:
            place = (key_padding_mask.data_ptr(), *key_padding_mask.shape)
            if place not in masks:
                masks[place] = create_block_mask(
                    lambda b, h, q, k: ~key_padding_mask[b, k], len(query), None, QUERIES, key.shape[2], query.device
                )
            block_mask = masks[place]
        return compiled(query, key, value, block_mask=block_mask)

    return flex


def implementations(device: torch.device) -> dict[str, Attend]:
    table: dict[str, Attend] = {
        "original": original,
        "reference": conditional_attention_reference,
        "sdpa_math": partial(sdpa, backend=SDPBackend.MATH),
    }
    if device.type == "cuda":
        table["sdpa_efficient"] = partial(sdpa, backend=SDPBackend.EFFICIENT_ATTENTION)
        table["sdpa_flash"] = partial(sdpa, backend=SDPBackend.FLASH_ATTENTION)
        table["sdpa_cudnn"] = partial(sdpa, backend=SDPBackend.CUDNN_ATTENTION)
        table["flex"] = make_flex()
    return table | {"fused": conditional_attention}


def reason_against(name: str, setting: Setting) -> str | None:
    """Why an implementation has no row for a setting."""
    if name == "flex" and setting.dropout:
        return "FlexAttention has no dropout"
    if name == "sdpa_cudnn" and setting.dropout:
        return "cuDNN's dropout takes multiples of 1/16 only"
    if name in ("sdpa_cudnn", "sdpa_flash") and setting.dtype == torch.float32:
        return "has no fp32"
    if name == "sdpa_flash" and setting.padded:
        return "has no key mask"
    if name == "flex" and setting.dtype == torch.float32:
        return "left out, as every variant takes seconds to compile"
    return None


def operands(setting: Setting, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
    """Views of projections, (B, N, H, D) transposed, as the model makes them; padded at the right and at the bottom."""
    lengths = (QUERIES, QUERIES, setting.keys, setting.keys, setting.keys)
    shapes = [(setting.batch, length, HEADS, DIM) for length in lengths]
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
    """Of output and gradients against fp64 without dropout, relative to the largest element of each.

    At the setting's batch, on which the configuration of the kernels depends.
    """
    tensors, mask = operands(setting, device)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = attend(*inputs, key_padding_mask=mask, dropout_p=0.0)
    want = conditional_attention_reference(*exact, key_padding_mask=mask)
    grad = torch.randn_like(want)
    pairs = [
        (out, want),
        *zip(torch.autograd.grad(out, inputs, grad.to(out.dtype)), torch.autograd.grad(want, exact, grad), strict=True),
    ]
    return max(((got.double() - exactly).abs().max() / exactly.abs().max()).item() for got, exactly in pairs)


def make_call(attend: Attend, setting: Setting, device: torch.device) -> Callable[[], object]:
    tensors, mask = operands(setting, device)
    if not setting.backward:

        def forward() -> object:
            with torch.no_grad():
                return attend(*tensors, key_padding_mask=mask, dropout_p=setting.dropout)

        return forward
    inputs = [tensor.requires_grad_() for tensor in tensors]
    grad = torch.randn(setting.batch, QUERIES, HEADS, DIM, device=device).to(setting.dtype).transpose(1, 2)

    def both() -> object:
        return torch.autograd.grad(attend(*inputs, key_padding_mask=mask, dropout_p=setting.dropout), inputs, grad)

    return both


def graphed(call: Callable[[], object]) -> Callable[[], float]:
    """A call of several replays of a CUDA graph that returns the microseconds of one, by the device's clock."""
    calls = 10
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
    stream.synchronize()

    def sample() -> float:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) * 1e3 / calls

    return sample


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
    cuda = device.type == "cuda"
    for keys in (1050, 4200):
        # a CPU takes seconds for a call of the larger ones
        batches = (1, 8) if quick and cuda else (1, 2, 8, 32) if cuda else (1, 2) if keys == 1050 else (1,)
        for batch in batches:
            for dtype in (torch.bfloat16, torch.float32) if cuda else (torch.float32,):
                for dropout in (0.0, 0.1):
                    for padded in (False, True):
                        for backward in (False, True):
                            yield Setting(batch, keys, dtype, dropout, padded, backward)


Sample = Callable[[], float]


def prepare(attend: Attend, setting: Setting, device: torch.device) -> tuple[Sample, float | None]:
    """What is timed, and the memory that it takes."""
    call = make_call(attend, setting, device)
    peak = peak_megabytes(call, device)
    return (graphed(call) if device.type == "cuda" else timed(call, device)), peak


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
            key = (name, setting.batch, setting.keys, setting.dtype, setting.padded)
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
            yield f"{name}: {type(problem).__name__} {str(problem).splitlines()[0]} for {setting}"
    times = interleaved(samples, seconds * len(samples))
    best = next((s for key, s in SPEEDS.items() if device.type == "cuda" and key in machine(device)), None)
    for name, values in times.items():
        us = statistics.median(values)
        yield {
            "impl": name,
            "batch": setting.batch,
            "queries": QUERIES,
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


def run(
    device: torch.device, quick: bool, seconds: float, file: Path | None, where: str
) -> tuple[list[Row], list[str]]:
    """The rows, and a sentence for each implementation that is wrong or failed. The file is written as rows come."""
    table = implementations(device)
    rows: list[Row] = []
    troubles: list[str] = []
    errors: dict[object, float] = {}
    for setting in tqdm(list(settings(device, quick)), unit="setting", leave=False, disable=None):
        for found in measure(table, setting, device, seconds, errors):
            troubles.append(found) if isinstance(found, str) else rows.append(found)
        if file:
            write_json(file, "attn_bench", where, rows)
    return rows, troubles


def picture(rows: list[Row], title: str) -> object:
    """A panel per pass and dropout: how many times longer than fused each alternative takes."""
    from matplotlib.figure import Figure

    panels = sorted({(row["pass"], row["dropout"]) for row in rows})
    figure = Figure(figsize=(5.5 * len(panels) / 2, 7.5), layout="constrained")
    axes = figure.subplots(2, math.ceil(len(panels) / 2), squeeze=False).flat
    for axis, (kind, dropout) in zip(axes, panels, strict=False):
        mine = [row for row in rows if (row["pass"], row["dropout"]) == (kind, dropout) and not row["padded"]]
        places = sorted({(row["dtype"], row["keys"], row["batch"]) for row in mine})
        names = list(dict.fromkeys(row["impl"] for row in mine if row["impl"] != "fused"))
        for i, name in enumerate(names):
            ratios = {(r["dtype"], r["keys"], r["batch"]): r["times_fused"] for r in mine if r["impl"] == name}
            where = [j for j, place in enumerate(places) if ratios.get(place)]
            heights = [ratios[places[j]] for j in where]
            axis.bar([j + 0.8 * i / len(names) for j in where], heights, 0.8 / len(names), label=name, align="edge")
        labels = [f"{dtype}\n{keys} keys\nbatch {batch}" for dtype, keys, batch in places]
        axis.set_xticks([j + 0.4 for j in range(len(places))], labels, fontsize=6)
        axis.set_title(f"{'forward' if kind == 'fwd' else 'forward + backward'}, dropout {dropout}", fontsize=10)
        ratio_axis(axis, "time / time of fused")
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes")
    parser.add_argument("--seconds", type=float, default=0.0, help="time for each row (default: 0.2 on CUDA, 0.3)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    where = machine(device)
    print(f"{where}; fused: {attention_path(device)}")
    seconds = options.seconds or (0.2 if device.type == "cuda" else 0.3)
    rows, troubles = run(device, options.quick, seconds, options.json, where)
    print_table(rows, COLUMNS)
    print(*troubles, sep="\n", file=sys.stderr)
    if options.json:
        picture(rows, where).savefig(options.json.with_suffix(".png"), dpi=130)  # type: ignore[attr-defined]
    # an alternative that does not work here is worth a note; ours must
    return int(any(sentence.startswith("fused") for sentence in troubles))


if __name__ == "__main__":
    sys.exit(main())

"""A whole training step, forward, matching, loss, backward, clipping and AdamW, on data that is on the device already.

Ours with one thing after the other switched on, against the transformers package's Conditional DETR with its own loss,
at the same sizes and from the same weights. The losses of all of them are compared first.
"""

import gc
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from common import Record, Row, arguments, interleaved, machine, percentiles, print_table, ratio_axis, timed
from host_reads import HostReads, cuda_synchronisations
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cond_detr import preset
from cond_detr.config import Config
from cond_detr.data.batching import Batch, pad_targets
from cond_detr.models.model import new_network
from cond_detr.models.predictions import Predictions
from cond_detr.models.resnet import LAYOUTS
from cond_detr.train.criterion import Criterion
from cond_detr.train.cuda_graphs import CudaRecorder, GraphedStep
from cond_detr.train.host_memory import keep_freed_memory
from cond_detr.train.optim import make_optimizer
from cond_detr.train.step import TrainStep
from cond_detr.weights.naming import to_ours

NUM_CLASSES = 91
TARGETS = 7
COCO_IMAGES, EPOCHS = 118_287, 50
# Of the loss, relative: the same weights in other arithmetic
TOLERANCE = {"off": 1e-4, "bf16": 5e-2}
COLUMNS = {
    "impl": "",
    "preset": "",
    "batch": "d",
    "height": "d",
    "width": "d",
    "ms": ".1f",
    "criterion_ms": ".2f",
    "images_per_second": ".1f",
    "times_transformers": ".2f",
    "times_plain": ".2f",
    "peak_mb": ".0f",
    "kernels": "d",
    "launches": "d",
    "host_syncs": "d",
    "hours_50_epochs": ".1f",
    "loss": ".5f",
}


@dataclass(frozen=True)
class Variant:
    """One way to run our step."""

    fused_attn: bool = False
    matcher: Literal["native", "scipy"] = "scipy"
    amp: Literal["off", "bf16"] = "off"
    graphs: bool = False
    compile: bool = False


PLAIN = Variant()
FUSED = replace(PLAIN, fused_attn=True)
MATCHED = replace(FUSED, matcher="native")
VARIANTS = {"plain": PLAIN, "+ fused attention": FUSED, "+ matcher": MATCHED}
CPU_VARIANTS = {"+ compile": replace(MATCHED, compile=True)}
CUDA_VARIANTS = {
    "+ graphs, fp32": replace(MATCHED, graphs=True),
    "+ bf16": replace(MATCHED, amp="bf16"),
    "+ graphs": replace(MATCHED, amp="bf16", graphs=True),
    "+ compile": replace(MATCHED, amp="bf16", graphs=True, compile=True),
}


@dataclass(frozen=True)
class Setting:
    """A preset, and the images of a batch."""

    preset: str
    batch: int
    height: int
    width: int


CPU_SETTINGS = [Setting("shapes", 16, 64, 64)]
CUDA_SETTINGS = [
    Setting("r50", 8, 800, 1066),
    Setting("r50", 2, 800, 1066),
    Setting("dc5-r50", 4, 800, 1066),
    Setting("dc5-r50", 1, 800, 1066),
]
TINY = Setting("shapes", 1, 64, 64)  # to see that everything runs


def make_batch(setting: Setting, device: torch.device) -> Batch:
    """Images with about TARGETS objects each; of two widths, the narrower padded, but for the built-in ones."""
    pixels = torch.randint(0, 256, (setting.batch, 3, setting.height, setting.width), dtype=torch.uint8)
    padding = None
    if setting.preset != "shapes":
        padding = torch.zeros(setting.batch, setting.height, setting.width, dtype=torch.bool)
        padding[::2, :, setting.width * 7 // 8 :] = True
    counts = torch.randint(1, 2 * TARGETS, (setting.batch,)).tolist()
    boxes = [torch.cat([torch.rand(n, 2) * 0.6 + 0.2, torch.rand(n, 2) * 0.3 + 0.05], 1) for n in counts]
    targets = pad_targets([torch.randint(0, NUM_CLASSES, (n,)) for n in counts], boxes)
    sizes = [(setting.width, setting.height)] * setting.batch
    return Batch(pixels, padding, targets, tuple(range(setting.batch)), sizes).to(device)


def configured(setting: Setting, variant: Variant) -> Config:
    """A preset's configuration with a variant's switches."""
    config = preset(setting.preset)
    return replace(
        config,
        model=replace(config.model, fused_attn=variant.fused_attn),
        # the loss that the transformers package has
        loss=replace(config.loss, matcher=variant.matcher, classification="focal"),
        train=replace(config.train, amp=variant.amp),
    )


class Ours:
    """Our step in one of its variants, from given weights."""

    def __init__(self, setting: Setting, variant: Variant, weights: dict[str, Tensor], device: torch.device) -> None:
        config = configured(setting, variant)
        self.network = new_network(config, NUM_CLASSES).to(device).train()
        self.network.load_state_dict(weights, strict=False)
        optimizer = make_optimizer(self.network, config.train, capturable=device.type == "cuda")
        called: nn.Module = self.network
        if variant.compile:
            called = torch.compile(called)  # type: ignore[assignment]
        plain = TrainStep(self.network, called, Criterion(config.loss), optimizer, config.train)
        self.criterion, self.amp = plain.criterion, variant.amp
        self.run = GraphedStep(plain, CudaRecorder(device)) if variant.graphs else plain

    def step(self, batch: Batch) -> None:
        """One of training's steps."""
        self.run.backward(batch, batch.targets.counts.sum().clamp(min=1), last=True)
        self.run.update()

    def criterion_alone(self, batch: Batch) -> Callable[[], None]:
        """Matching and losses, forward and backward, of predictions that are there already."""
        with torch.no_grad():
            predictions = self.network(*batch.inputs())
        predictions = Predictions(*(tensor.detach().requires_grad_() for tensor in predictions))
        num_boxes = batch.targets.counts.sum()
        return lambda: self.criterion(predictions, batch.targets, num_boxes).total.backward()

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """In evaluation mode, so without dropout."""
        self.network.eval()
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
            predictions = self.network(*batch.inputs())
        total = self.criterion(predictions, batch.targets, batch.targets.counts.sum()).total
        self.network.train()
        return total.item()


class Transformers:
    """Their model, their loss, and the same optimiser and clipping."""

    def __init__(self, setting: Setting, device: torch.device, amp: str = "off") -> None:
        self.model = transformers_model(preset(setting.preset)).to(device).train()
        self.train, self.weights, self.amp = preset(setting.preset).train, preset(setting.preset).loss, amp
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-4, fused=True)

    def step(self, batch: Batch) -> None:
        """One of training's steps."""
        self._output(batch).loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """Weighed as the paper does it; their sum weighs the classification with 1."""
        self.model.eval()
        parts: dict[str, Tensor] = self._output(batch).loss_dict
        self.model.train()
        weights = {"loss_ce": self.weights.class_weight, "loss_bbox": self.weights.l1_weight}
        weights |= {"loss_giou": self.weights.giou_weight}
        return sum(
            weight * part.item()
            for name, weight in weights.items()
            for key, part in parts.items()
            if key.startswith(name)
        )

    def _output(self, batch: Batch) -> Any:
        counts = batch.targets.counts.tolist()
        mask = None if batch.padding is None else (~batch.padding).long()
        labels = [
            {"class_labels": batch.targets.labels[i, :n], "boxes": batch.targets.boxes[i, :n]}
            for i, n in enumerate(counts)
        ]
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
            return self.model(pixel_values=batch.inputs()[0], pixel_mask=mask, labels=labels)


def transformers_model(config: Config) -> nn.Module:
    """Their Conditional DETR at the sizes of a preset of ours, with random weights and the same layers frozen."""
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, ResNetConfig

    m, layout = config.model, LAYOUTS[config.model.backbone]
    depths = layout.depths
    expansion = layout.block.expansion
    backbone = ResNetConfig(  # type: ignore[call-arg]
        embedding_size=layout.width,
        hidden_sizes=[layout.width * expansion * 2**i for i in range(len(depths))],
        depths=list(depths),
        layer_type="bottleneck" if expansion > 1 else "basic",
        out_features=[f"stage{len(depths)}"],
    )
    model: nn.Module = ConditionalDetrForObjectDetection(
        ConditionalDetrConfig(  # type: ignore[call-arg]
            backbone_config=backbone,
            num_labels=NUM_CLASSES,
            num_queries=m.num_queries,
            d_model=m.d_model,
            encoder_layers=m.encoder_layers,
            decoder_layers=m.decoder_layers,
            encoder_ffn_dim=m.ffn_dim,
            decoder_ffn_dim=m.ffn_dim,
            encoder_attention_heads=m.num_heads,
            decoder_attention_heads=m.num_heads,
            dropout=m.dropout,
            attention_dropout=m.dropout,
            activation_dropout=m.dropout,
            auxiliary_loss=True,
        )
    )
    resnet: Any = model.model.backbone.model  # type: ignore[union-attr]
    resnet.embedder.embedder.convolution = nn.Conv2d(
        3, layout.width, layout.stem_kernel, 2, layout.stem_kernel // 2, bias=False
    )
    if m.dilation:
        dilate(resnet.encoder.stages[-1].layers)
    frozen = {id(p) for part in (resnet.embedder, resnet.encoder.stages[0]) for p in part.parameters()}
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        parameter.requires_grad_(not layout.pretrained or id(parameter) not in frozen)
    return model


def dilate(blocks: nn.Sequential) -> None:
    """Stride to dilation, the first block excepted from the latter."""
    for i, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if i > 0 and module.kernel_size == (3, 3):
                    module.dilation = module.padding = (2, 2)


def implementations(
    setting: Setting, device: torch.device
) -> Iterator[tuple[str, str, Callable[[], Ours | Transformers]]]:
    """(name, precision, what makes it) of every row, all from the same weights."""
    torch.manual_seed(1)
    theirs = transformers_model(preset(setting.preset)).state_dict()
    weights = to_ours(theirs)

    def make_theirs(amp: str) -> Transformers:
        made = Transformers(setting, device, amp)
        made.model.load_state_dict(theirs)
        return made

    yield "transformers", "off", lambda: make_theirs("off")
    if device.type == "cuda":
        yield "transformers, bf16", "bf16", lambda: make_theirs("bf16")
    variants = VARIANTS | (CUDA_VARIANTS if device.type == "cuda" else CPU_VARIANTS)
    for name, variant in variants.items():
        yield name, variant.amp, partial(Ours, setting, variant, weights, device)


def activity(step: Callable[[], None], device: torch.device, *, compiled: bool) -> Row:
    """What a step asks of the device: kernels, launches, synchronisations, peak memory.

    On the CPU operations are counted instead of kernels, which compiled code has none of.
    """
    if device.type != "cuda":
        if compiled:
            return {}
        with HostReads() as counted:
            step()
        return {"kernels": counted.operations, "host_syncs": counted.found.total()}
    peak = torch.cuda.max_memory_allocated() / 2**20
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        step()
        torch.cuda.synchronize()
    events = record.events() or []
    cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    on_device = [event for event in events if event.device_type == cuda]
    kernels = sum(not event.is_user_annotation and not event.name.startswith("Mem") for event in on_device)
    launches = sum("LaunchKernel" in event.name or "GraphLaunch" in event.name for event in events)
    return {"kernels": kernels, "launches": launches, "host_syncs": cuda_synchronisations(step), "peak_mb": peak}


def measure(setting: Setting, device: torch.device, seconds: float, *, compiled: bool = True) -> Iterator[list[Row]]:
    """The rows so far, each time that there are more; at the end a row for each implementation.

    On a CPU they take turns, on CUDA each has the device's memory for itself.
    """
    torch.manual_seed(0)
    batch = make_batch(setting, device)
    everything = [one for one in implementations(setting, device) if compiled or "compile" not in one[0]]
    rows: dict[str, Row] = {}
    times: dict[str, list[float]] = {}
    for group in [[one] for one in everything] if device.type == "cuda" else [everything]:
        steps: dict[str, Callable[[], None]] = {}
        for name, amp, make in group:
            if device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch._dynamo.reset()
            made = make()
            rows[name] = {"loss": exact(made.loss, batch)}
            check_loss(name, rows, setting, TOLERANCE[amp])
            steps[name] = partial(made.step, batch)
            for _ in range(3):  # graphs are captured in the second
                steps[name]()
            if isinstance(made, Ours):
                loss = interleaved({"": timed(made.criterion_alone(batch), device)}, seconds / 8)[""]
                rows[name]["criterion_ms"] = statistics.median(loss) / 1e3
        times |= interleaved({name: timed(step, device) for name, step in steps.items()}, seconds * len(steps))
        for name, step in steps.items():
            rows[name] |= activity(step, device, compiled="compile" in name)
        del made, steps, step
        yield [finished(name, row, times, setting) for name, row in rows.items()]


def exact(loss: Callable[[Batch], float], batch: Batch) -> float:
    """The loss without TF32, which would blur the comparison."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = loss(batch)
    torch.set_float32_matmul_precision(precision)
    return found


def check_loss(name: str, rows: dict[str, Row], setting: Setting, tolerance: float) -> None:
    """Stops everything if a loss is not that of the transformers package."""
    loss, wanted = rows[name]["loss"], rows["transformers"]["loss"]
    if not math.isfinite(loss) or abs(loss - wanted) > tolerance * abs(wanted):
        raise SystemExit(f"{name} on {setting.preset} finds a loss of {loss}, transformers {wanted}")


def finished(name: str, row: Row, times: dict[str, list[float]], setting: Setting) -> Row:
    """The row with its times and what follows from them."""
    us = statistics.median(times[name])
    images_per_second = setting.batch / us * 1e6
    projected = COCO_IMAGES * EPOCHS / images_per_second / 3600 if setting.preset != "shapes" else None
    return {
        "impl": name,
        "preset": setting.preset,
        "batch": setting.batch,
        "height": setting.height,
        "width": setting.width,
        **percentiles(times[name]),
        "ms": us / 1e3,
        "images_per_second": images_per_second,
        "times_transformers": statistics.median(times["transformers"]) / us,
        "times_plain": statistics.median(times["plain"]) / us if "plain" in times else None,
        "hours_50_epochs": projected,
        **row,
    }


def picture(rows: list[Row], title: str) -> object:
    """Bars: how many times as fast as the transformers package."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((row["preset"], row["batch"]) for row in rows))
    figure = Figure(figsize=(max(6, 4 * len(places)), 4.5), layout="constrained")
    for axis, place in zip(figure.subplots(1, len(places), squeeze=False).flat, places, strict=True):
        mine = [row for row in rows if (row["preset"], row["batch"]) == place]
        bars = axis.bar(range(len(mine)), [row["times_transformers"] for row in mine])
        axis.bar_label(bars, fmt="{:.2f}", fontsize=8)
        names = [row["impl"] for row in mine]
        axis.set_xticks(range(len(mine)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_title(f"{place[0]}, batch {place[1]}", fontsize=10)
        ratio_axis(axis, "speed / speed of transformers")
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    """Measures, prints the table, and writes rows and picture if wanted."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="one size, nothing compiled")
    parser.add_argument("--no-compile", action="store_true", help="nothing compiled, which takes a minute a size")
    parser.add_argument("--tiny", action="store_true", help="a small problem, nothing compiled, to see that it runs")
    parser.add_argument("--seconds", type=float, default=0.0, help="time for each row (default: 1 on CUDA, 8)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()  # as the training command does, for all rows alike
    where = machine(device)
    print(where)
    seconds = options.seconds or (1 if device.type == "cuda" else 8)
    record = Record(options.json, "step_bench", where)
    settings = CUDA_SETTINGS if device.type == "cuda" else CPU_SETTINGS
    settings = [TINY] if options.tiny else settings[:1] if options.quick else settings
    compiled = not (options.quick or options.tiny or options.no_compile)
    for setting in settings:
        others = record.rows
        for rows in measure(setting, device, seconds, compiled=compiled):
            record.rows = others + rows
            record.write()
    print_table(record.rows, COLUMNS)
    record.finish(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

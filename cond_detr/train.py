"""``python -m cond_detr.train``: trains a Conditional DETR on the built-in shapes or on a COCO-format folder."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cond_detr import distributed
from cond_detr.checkpoints import Checkpoint, LoadedWeights, load_weights
from cond_detr.cli import (
    default_workers,
    device_argument,
    make_folder,
    natural,
    positive,
    positive_or_auto,
    probability,
    rate,
    run,
)
from cond_detr.config import PRESETS, Config, LossConfig, ModelConfig, TrainConfig, as_detr, choices, preset
from cond_detr.criterion import Criterion
from cond_detr.cuda_graphs import why_not
from cond_detr.data import open_split
from cond_detr.data.coco import CocoDataset
from cond_detr.errors import InputError
from cond_detr.host_memory import keep_freed_memory
from cond_detr.matcher import MATCHERS
from cond_detr.models import MODELS, build
from cond_detr.models.detector import Detector
from cond_detr.models.normalization import SyncedBatchNorm2d
from cond_detr.models.resnet import LAYOUTS
from cond_detr.rehearsal import largest_batch_size
from cond_detr.run_folder import RunFolder
from cond_detr.trainer import Interrupted, Trainer
from cond_detr_kernels import attention_path

# Options that set a field of the configuration: (section, field). Options left out keep the preset's value.
SETTINGS = {
    "model": ("model", "kind"),
    "reference_point": ("model", "reference_point"),
    "offset_regression": ("model", "offset_regression"),
    "spatial_query": ("model", "spatial_query"),
    "projection": ("model", "projection"),
    "encoder_layers": ("model", "encoder_layers"),
    "decoder_layers": ("model", "decoder_layers"),
    "classification": ("loss", "classification"),
    "fused_attn": ("model", "fused_attn"),
    "num_queries": ("model", "num_queries"),
    "dropout": ("model", "dropout"),
    "matcher": ("loss", "matcher"),
    "dataset_dir": ("data", "dataset_dir"),
    "size_step": ("data", "size_step"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "accumulate": ("train", "accumulate"),
    "eval_batch_size": ("train", "eval_batch_size"),
    "lr": ("train", "lr"),
    "backbone_lr": ("train", "backbone_lr"),
    "schedule": ("train", "schedule"),
    "amp": ("train", "amp"),
    "compile": ("train", "compile"),
    "cuda_graphs": ("train", "cuda_graphs"),
    "ema": ("train", "ema"),
    "seed": ("train", "seed"),
    "deterministic": ("train", "deterministic"),
}
# Pixels: COCO's images then come in some tens of padded sizes
GRAPH_SIZE_STEP = 128


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cond_detr.train",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
    )
    add_data_options(p.add_argument_group("what to train on"))
    add_model_options(p.add_argument_group("model"))
    add_ablations(p.add_argument_group("ablations of the paper (each default is the paper's choice)"))
    add_training_options(p.add_argument_group("training"))
    add_running_options(p.add_argument_group("running"))
    return p


def add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset-dir",
        "--coco-path",
        metavar="DIR",
        help="folder with train/, val/ and annotations/instances_{train,val}.json, or COCO's own layout; "
        "without it the built-in shapes are used",
    )
    group.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: shapes, or r50 with a folder)")
    group.add_argument("--weights", metavar="FILE", help="start from the weights of a file or URL, as far as they fit")
    group.add_argument("--image-size", type=positive, metavar="N", help="short side in pixels")


def add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        choices=tuple(MODELS),
        help="conditional-detr (default), or plain DETR with its settings as the baseline",
    )
    group.add_argument("--fused-attn", action="store_true", help="fused conditional cross-attention")
    group.add_argument("--num-queries", type=positive, metavar="N", help="object queries")
    group.add_argument("--dropout", type=probability, metavar="P", help="dropout in the transformer")
    group.add_argument("--encoder-layers", type=natural, metavar="N")
    group.add_argument("--decoder-layers", type=positive, metavar="N")


def add_ablations(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reference-point",
        choices=choices(ModelConfig, "reference_point"),
        help="predicted from the object query, learned as a parameter, or fixed (section 4.3)",
    )
    group.add_argument(
        "--spatial-query",
        choices=choices(ModelConfig, "spatial_query"),
        help="csq; its transformation (t) or embedding (p) alone; the decoder's output (c); transformed by what "
        "self-attention gave (i) (Table 3)",
    )
    group.add_argument(
        "--projection", choices=choices(ModelConfig, "projection"), help="form of the transformation (Figure 5)"
    )
    group.add_argument(
        "--offset-regression",
        action=argparse.BooleanOptionalAction,
        help="box centres as offsets from the reference points (Table 4)",
    )
    group.add_argument(
        "--classification", choices=choices(LossConfig, "classification"), help="loss of the classes (Table 4)"
    )


def add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=positive, metavar="N")
    group.add_argument(
        "--batch-size",
        type=positive_or_auto,
        metavar="N",
        help="images per process and backward pass; auto: as many as fit into the GPU's memory",
    )
    group.add_argument("--accumulate", type=positive, metavar="N", help="backward passes per optimiser step")
    group.add_argument(
        "--size-step",
        type=natural,
        metavar="PIXELS",
        help="batches of images of like size, padded to multiples of so many pixels; 0: of any images (default)",
    )
    group.add_argument("--eval-batch-size", type=positive, metavar="N", help="images at once in evaluation")
    group.add_argument("--lr", type=rate, metavar="X", help="learning rate of the transformer")
    group.add_argument("--backbone-lr", type=rate, metavar="X", help="learning rate of the backbone")
    group.add_argument(
        "--schedule",
        choices=choices(TrainConfig, "schedule"),
        help="of the rates: step, or a warm-up and a cosine (default: the preset's)",
    )
    group.add_argument(
        "--lr-drop",
        type=positive,
        metavar="EPOCH",
        help="epochs before the rates are divided by ten (default: 4/5 of all)",
    )
    group.add_argument("--matcher", choices=tuple(MATCHERS), help="how to match (default: native)")
    group.add_argument("--amp", choices=("bf16", "off"), help="bf16 autocast")
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument(
        "--cuda-graphs",
        action="store_true",
        help=f"capture the step, a graph for each padded size; --size-step is then {GRAPH_SIZE_STEP} unless given",
    )
    group.add_argument(
        "--ema", type=probability, metavar="DECAY", help="evaluate and save a moving average of the weights"
    )
    group.add_argument("--seed", type=natural, metavar="N")
    group.add_argument("--deterministic", action="store_true", help="only deterministic algorithms")


def add_running_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output-dir", type=Path, metavar="DIR", help="run folder (default: a new one under runs/)")
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="continue an interrupted run: of FILE, of --output-dir, or the latest under runs/",
    )
    group.add_argument("--tensorboard", action="store_true", help="also write the curves for TensorBoard")
    group.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if any)")
    group.add_argument(
        "--workers",
        type=natural,
        metavar="N",
        help="processes that load images (default: a quarter of the cores, at most 4)",
    )


def configure(options: dict[str, Any], base: Config) -> Config:
    """The settings of ``base`` with what the command line says instead."""
    sections: dict[str, dict[str, Any]] = {"model": {}, "loss": {}, "data": {}, "train": {}}
    for option, (section, name) in SETTINGS.items():
        if option in options:
            sections[section][name] = options[option]
    if "image_size" in options:
        size = options["image_size"]
        sections["data"] |= {"image_size": size, "max_size": round(size * base.data.max_size / base.data.image_size)}
    if sections["train"].get("cuda_graphs"):
        sections["data"].setdefault("size_step", base.data.size_step or GRAPH_SIZE_STEP)
    if "lr_drop" in options:
        sections["train"]["lr_drop"] = options["lr_drop"] / options.get("epochs", base.train.epochs)
    return replace(
        base,
        model=replace(base.model, **sections["model"]),
        loss=replace(base.loss, **sections["loss"]),
        data=replace(base.data, **sections["data"]),
        train=replace(base.train, **sections["train"]),
    )


def checkpoint_to_resume(options: dict[str, Any]) -> Path:
    """The file that ``--resume`` means."""
    if options["resume"]:
        return Path(options["resume"])
    if "output_dir" in options:
        path: Path = RunFolder(options["output_dir"]).last
        if not path.exists():
            raise InputError(f"--resume: nothing to resume, {path} does not exist")
        return path
    return RunFolder.latest()


def resumed_config(options: dict[str, Any], checkpoint: Checkpoint) -> Config:
    """The checkpoint's settings; options that would change them are refused, but for where the data is."""
    config = checkpoint.config
    if options.get("preset", config.preset) != config.preset:
        raise InputError(
            f"--resume: checkpoint {checkpoint.path} is of preset {config.preset!r}, not {options['preset']!r}; "
            "to start a new run from its weights use --weights"
        )
    wanted = configure(options, config)
    # the data may have moved since
    if replace(wanted, data=replace(wanted.data, dataset_dir=config.data.dataset_dir)) != config:
        changed = [
            name for name in options if name != "dataset_dir" and configure({name: options[name]}, config) != config
        ]
        raise InputError(
            f"--resume: {', '.join('--' + name.replace('_', '-') for name in changed)} differs from what "
            f"{checkpoint.path} was started with; leave it out, or start a new run from its weights with --weights"
        )
    if checkpoint.progress is not None and checkpoint.progress["epoch"] >= config.train.epochs:
        raise InputError(
            f"--resume: nothing to resume, {checkpoint.path} has finished its {config.train.epochs} epochs"
        )
    return wanted


def describe_data(dataset: CocoDataset) -> str:
    annotations = dataset.annotations
    boxes = sum(len(record.labels) for record in annotations.records)
    dropped = "".join(f"; {count} boxes dropped ({why})" for why, count in annotations.dropped.items())
    return f"{annotations.name}: {len(dataset)} images, {boxes} boxes, {len(annotations.classes)} classes{dropped}"


def describe(
    config: Config, model: Detector, train_set: CocoDataset, val_set: CocoDataset, device: torch.device
) -> str:
    """What the run is about to do."""
    train = config.train
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    per_step = train.batch_size * train.accumulate * distributed.world_size()
    return "\n".join(
        [
            f"data        {describe_data(train_set)}",
            f"            {describe_data(val_set)}",
            f"model       {type(model).__name__}, preset {config.preset}, {parameters:.1f} M parameters, on {device}",
            f"attention   {describe_attention(config, device)}",
            f"step        {describe_step(config, model, device)}",
            f"batch       {per_step} images a step = {train.batch_size} x {train.accumulate} accumulated "
            f"x {distributed.world_size()} processes",
        ]
    )


def describe_attention(config: Config, device: torch.device) -> str:
    """What computes the cross-attention."""
    if config.model.kind == "detr":
        return "added content and position, scaled_dot_product_attention"
    return f"fused: {attention_path(device)}" if config.model.fused_attn else "reference (concatenate, softmax)"


def describe_step(config: Config, model: Detector, device: torch.device) -> str:
    """How a step is run, and why it is not captured if that was asked for."""
    train = config.train
    parts = ["bf16 autocast" if train.amp == "bf16" else "fp32"]
    if train.compile:
        parts.append("torch.compile")
    if train.cuda_graphs:
        obstacle = why_not(config, model, device)
        parts.append(f"no CUDA graphs: {obstacle}" if obstacle else "CUDA graphs")
    if train.ema:
        parts.append(f"weights averaged with decay {train.ema:g}")
    return ", ".join(parts)


def describe_start(options: dict[str, Any], config: Config, weights: LoadedWeights | None) -> str:
    """Where the initial weights come from."""
    if weights:
        return f"weights of {options['weights']}: {weights}"
    if LAYOUTS[config.model.backbone].pretrained:
        return (
            "random weights. WARNING: this backbone's first stage and batch norm are not trained and are meant to come "
            "from ImageNet; pass --weights with a torchvision ResNet or a trained detector"
        )
    return "random weights"


def with_largest_batch(config: Config, model: Detector, train_set: CocoDataset, device: torch.device) -> Config:
    """The settings with the batch size that fits on every process."""
    if device.type != "cuda":
        raise InputError(f"--batch-size auto: it fills a GPU's memory, and {device} is none; give a number")
    if distributed.world_size() > 1 and any(isinstance(module, SyncedBatchNorm2d) for module in model.modules()):
        raise InputError(
            "--batch-size auto: processes share batch norm here, and cannot search on their own; give a number"
        )
    most = max(1, len(train_set) // (config.train.accumulate * distributed.world_size()))
    found = largest_batch_size(model, Criterion(config.loss), config, train_set, device, most)
    found = distributed.least_over_ranks(found, device)
    return replace(config, train=replace(config.train, batch_size=found))


def train(options: dict[str, Any], device: torch.device) -> None:
    """Sets a run up, or an interrupted one up again, and trains."""
    checkpoint = None
    if distributed.restarted() and "output_dir" in options and RunFolder(options["output_dir"]).last.exists():
        options = {"resume": "", **{name: value for name, value in options.items() if name != "weights"}}
    auto = options.get("batch_size") == "auto"
    if auto:
        options = {name: value for name, value in options.items() if name != "batch_size"}
    if "resume" in options:
        if "weights" in options:
            raise InputError("--resume and --weights exclude each other: a resumed run has its own weights")
        checkpoint = Checkpoint.load(checkpoint_to_resume(options))
        config = resumed_config(options, checkpoint)
    else:
        name = options.get("preset", "r50" if "dataset_dir" in options else "shapes")
        base = preset(name)
        config = configure(options, as_detr(base) if options.get("model") == "detr" else base)
    torch.use_deterministic_algorithms(config.train.deterministic)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    # identical on every process, and the same whatever was drawn before
    torch.manual_seed(config.train.seed)
    stride = LAYOUTS[config.model.backbone].stride(config.model.dilation)
    train_set = open_split(config.data, "train", stride, seed=config.train.seed)
    val_set = open_split(config.data, "val", stride)
    model = build(config, train_set.annotations.classes).to(device)
    weights = load_weights(model, options["weights"]) if "weights" in options else None
    if auto and not checkpoint:
        config = with_largest_batch(config, model, train_set, device)
    if checkpoint:
        folder = RunFolder(checkpoint.path.parent)
    else:
        folder = distributed.from_rank_zero(lambda: RunFolder.plan(options.get("output_dir"), config.preset))
    workers = options.get("workers", 0 if config.data.dataset_dir is None else default_workers())
    trainer = Trainer(
        model,
        config,
        train_set,
        val_set,
        folder=folder,
        device=device,
        workers=workers,
        tensorboard=options.get("tensorboard", False),
    )
    if checkpoint:
        trainer.restore(checkpoint)
    if distributed.rank() == 0:
        make_folder(folder.path)
        folder.write_config(config)
        print(describe(config, model, train_set, val_set, device))
        start = f"resumed from {checkpoint.path}" if checkpoint else describe_start(options, config, weights)
        print(f"start       {start}")
        print(f"run folder  {folder.path}", flush=True)
    trainer.run()
    if distributed.rank() == 0:
        print(f"best AP {trainer.progress.best_ap * 100:.1f}; see {folder.path}/metrics.png and {folder.predictions}")


def main(argv: Sequence[str] | None = None) -> int:
    options = vars(parser().parse_args(argv))
    device = distributed.local_device(device_argument(options["device"]))
    if device.type == "cpu":
        keep_freed_memory()
    distributed.start(device)
    try:
        train(options, device)
    except Interrupted as stop:
        if distributed.rank() == 0:
            print(stop, file=sys.stderr)
        return stop.exit_code
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    run(main)

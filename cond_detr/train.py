"""``python -m cond_detr.train``: trains a Conditional DETR on the built-in shapes or on a COCO-format folder."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cond_detr import distributed
from cond_detr.checkpoints import Checkpoint, load_weights
from cond_detr.cli import (
    add_precision_option,
    command_parser,
    device_argument,
    natural,
    positive,
    positive_or_auto,
    probability,
    rate,
    run,
)
from cond_detr.config import PRESETS, Config, LossConfig, ModelConfig, TrainConfig, as_detr, choices, preset
from cond_detr.describe import pretraining_warning
from cond_detr.errors import InputError
from cond_detr.fit import Running, launch, prepare, with_largest_batch, without_auto
from cond_detr.matcher import MATCHERS
from cond_detr.models import MODELS, build, check_buildable
from cond_detr.run_folder import RunFolder
from cond_detr.settings import GRAPH_SIZE_STEP, configure
from cond_detr.trainer import Interrupted


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "train",
        __doc__,
        "--fused-attn",
        "--preset small --dataset-dir DIR --fused-attn",
        "--preset r50 --dataset-dir DIR --weights resnet50.pth --fused-attn --amp bf16 --epochs 20",
        "--resume",
        usage="cond-detr train [options]",
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
    group.add_argument("--encoder-layers", type=natural, metavar="N", help="layers of the encoder")
    group.add_argument("--decoder-layers", type=positive, metavar="N", help="layers of the decoder")


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
    group.add_argument("--epochs", type=positive, metavar="N", help="passes over the training images")
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
    add_precision_option(group, "high")
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument(
        "--cuda-graphs",
        action="store_true",
        help=f"capture the step, a graph for each padded size; --size-step is then {GRAPH_SIZE_STEP} unless given",
    )
    group.add_argument(
        "--ema", type=probability, metavar="DECAY", help="evaluate and save a moving average of the weights"
    )
    group.add_argument("--seed", type=natural, metavar="N", help="of everything random (default: 0)")
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
    if checkpoint.progress is not None and checkpoint.progress.epoch >= config.train.epochs:
        raise InputError(
            f"--resume: nothing to resume, {checkpoint.path} has finished its {config.train.epochs} epochs"
        )
    return wanted


def train(options: dict[str, Any], device: torch.device) -> None:
    """Sets a run up, or an interrupted one up again, and trains."""
    checkpoint = None
    if distributed.restarted() and "output_dir" in options and RunFolder(options["output_dir"]).last.exists():
        options = {"resume": "", **{name: value for name, value in options.items() if name != "weights"}}
    options, auto = without_auto(options, device)
    if "resume" in options:
        if "weights" in options:
            raise InputError("--resume and --weights exclude each other: a resumed run has its own weights")
        checkpoint = Checkpoint.load(checkpoint_to_resume(options))
        check_buildable(checkpoint)
        config = resumed_config(options, checkpoint)
    else:
        name = options.get("preset", "r50" if "dataset_dir" in options else "shapes")
        base = preset(name)
        config = configure(options, as_detr(base) if options.get("model") == "detr" else base)
    data = prepare(config)
    model = build(config, data.train.annotations.classes).to(device)
    weights = load_weights(model, options["weights"]) if "weights" in options else None
    if auto and not checkpoint:
        config = with_largest_batch(config, model, data, device)
    running = Running(device, options.get("output_dir"), options.get("workers"), options.get("tensorboard", False))
    if checkpoint:
        start = f"resumed from {checkpoint.path}"
    else:
        start = f"weights of {options['weights']}: {weights}" if weights else "random weights"
        start += pretraining_warning(model)
    launch(model, config, data, running, start, checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    options = vars(parser().parse_args(argv))
    device = distributed.local_device(device_argument(options["device"]))
    with distributed.processes(device):
        try:
            train(options, device)
        except Interrupted as stop:
            if distributed.rank() == 0:
                print(stop, file=sys.stderr)
            return stop.exit_code
    return 0


if __name__ == "__main__":
    run(main)

"""``cond-detr train``: trains a detector on the built-in shapes or on a folder of your own.

Values in brackets are those of r50, the preset with the paper's settings.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cond_detr import distributed
from cond_detr.cli import command_parser, run
from cond_detr.config import Config, RunConfig, configure
from cond_detr.errors import InputError, say, shown
from cond_detr.options import RUNNING, add_section, add_settings, given, read_config
from cond_detr.paths import exists, is_folder
from cond_detr.presets import PRESETS, configured
from cond_detr.settings import all_settings, declared
from cond_detr.train.interruption import Interrupted
from cond_detr.train.run import Running, new_run, resumed_run
from cond_detr.train.run_folder import RUNS, RunFolder
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.progress import is_over


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr train``."""
    p = command_parser(
        "train",
        __doc__,
        "--fused-attn",
        "--preset small --dataset-dir DIR --fused-attn",
        "--preset small --dataset-dir DIR --val-fraction 0.2 --colour 0.3 --zoom 0.3 --mosaic 0.2 --patience 10",
        "--preset r50 --dataset-dir DIR --weights conditional-detr-r50 --fused-attn --amp bf16 --epochs 20 --wandb",
        "--preset r50 --coco-path COCO --weights resnet50 --epochs 12 --query-groups 11 --tensorboard --csv --mlflow",
        "--dataset-dir DIR --weights resnet50 --queries boxes --denoising 5 --classification mal --freeze backbone "
        "--checkpointing",
        "--config runs/small/config.json --seed 1 -q",
        "--resume",
        usage="cond-detr train [options]",
        argument_default=argparse.SUPPRESS,
    )
    group = p.add_argument_group("where to start")
    group.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings to start from: {', '.join(PRESETS)} (default: shapes, or r50 with --dataset-dir)",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="start from the settings in a file, such as a run's config.json, instead of a preset's",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="start from weights in a file, at a URL, of a published name such as resnet50 or conditional-detr-r50, or "
        "of namespace/name on the Hugging Face hub; tensors that do not fit are left out",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="continue an interrupted run: that of FILE, a last.pt; that in --output-dir; or the latest under runs/",
    )
    add_settings(p)
    add_section(p, RUNNING, declared(RunConfig).values())
    return p


def new_config(options: dict[str, Any]) -> Config:
    """Settings of a new run: those of a preset or a file, changed by the other options.

    Args:
        options: the given options by name.

    Raises:
        InputError: if the file cannot be read, or options are invalid or exclude each other.
    """
    values = given(options, Config)
    if "config" in options:
        if "preset" in options:
            raise InputError("`config` and `preset` exclude each other: both say where the settings come from")
        config = read_config(options["config"])
        if values.get("kind", config.model.kind) != config.model.kind:
            raise InputError(
                f"{options['config']} is of a {config.model.kind}, and `kind` {values['kind']} has other losses and "
                "queries too; leave one of them out"
            )
        return configure(config, values)
    return configured(options.get("preset", "r50" if "dataset_dir" in values else "shapes"), values)


def checkpoint_to_resume(options: dict[str, Any]) -> Path:
    """Finds the checkpoint that ``--resume`` refers to: a given one, that of ``--output-dir``, or the latest.

    Args:
        options: the given options by name.

    Raises:
        InputError: if there is none.
    """
    if options["resume"]:
        named = Path(options["resume"])
        if is_folder(named):
            named = RunFolder(named).last
        if exists(named) and named.name != RunFolder(named.parent).last.name:
            raise InputError(
                f"`resume`: {named} is not a run's last.pt, beside which the run goes on; to start a new run from its "
                "weights use `weights`"
            )
        if "output_dir" in options and Path(options["output_dir"]).resolve() != named.parent.resolve():
            place = options["output_dir"]
            raise InputError(f"`resume`: {named} goes on in its own folder, not in `output_dir` {place}")
        return named
    if "output_dir" in options:
        path: Path = RunFolder(Path(options["output_dir"])).last
        if not exists(path):
            raise InputError(f"`resume`: nothing to resume, {path} does not exist")
        return path
    return latest()


def latest() -> Path:
    """The most recent ``last.pt`` of an unfinished run under ``runs``.

    Raises:
        InputError: if there is none.
    """
    for path in RunFolder.unfinished():
        if not finished(Checkpoint.load(path)):
            return path
    raise InputError(f"`resume`: nothing to resume, no unfinished run in any folder of {RUNS}/")


def finished(checkpoint: Checkpoint) -> bool:
    """Whether a run has no epochs left. If it was killed before its log said so, the log is written here."""
    progress = checkpoint.progress
    train = checkpoint.config.train
    if progress is None or not is_over(progress.history, train.epochs, train.patience):
        return False
    folder = RunFolder(checkpoint.path.parent)
    if not folder.finished():
        folder.write_log(progress.history)
        folder.write_curves(progress.history)
    return True


def resumed_config(options: dict[str, Any], checkpoint: Checkpoint) -> Config:
    """Settings of a resumed run: the checkpoint's. Options may change the number of epochs and where the data set is.

    Args:
        options: the given options by name.
        checkpoint: the checkpoint to resume from.

    Raises:
        InputError: if an option differs from the checkpoint's settings, or the run is finished.
    """
    config = checkpoint.config
    if options.get("preset", config.preset) != config.preset:
        raise InputError(
            f"`resume`: checkpoint {checkpoint.path} is of preset {shown(config.preset)}, not "
            f"{shown(options['preset'])}; to start a new run from its weights use `weights`"
        )
    values = given(options, Config)
    # a size that was found out when the run began stays what it is
    if values.get("batch_size") == "auto":
        del values["batch_size"]
    wanted = configure(config, values)
    # the data may have moved since
    same = replace(
        wanted,
        data=replace(wanted.data, dataset_dir=config.data.dataset_dir),
        train=replace(wanted.train, epochs=config.train.epochs, patience=config.train.patience),
    )
    if same != config:
        changed = [
            all_settings(Config)[name].option
            for name, value in values.items()
            if name not in {"dataset_dir", "epochs", "patience"} and configure(config, {name: value}) != config
        ]
        raise InputError(
            f"`resume`: {', '.join(changed)} differs from what {checkpoint.path} was started with; leave it out, or "
            "start a new run from its weights with `weights`"
        )
    if checkpoint.progress is not None and checkpoint.progress.epoch >= wanted.train.epochs:
        raise InputError(
            f"`resume`: nothing to resume, {checkpoint.path} has finished {checkpoint.progress.epoch} epochs; more of "
            f"them with `epochs`, such as `epochs` {2 * checkpoint.progress.epoch}"
        )
    if checkpoint.progress is not None and is_over(
        checkpoint.progress.history, wanted.train.epochs, wanted.train.patience
    ):
        raise InputError(
            f"`resume`: nothing to resume, {checkpoint.path} has had no better AP for {wanted.train.patience} epochs; "
            f"go on with `patience`, such as `patience` {2 * wanted.train.patience}"
        )
    return wanted


def train(options: dict[str, Any], running: Running) -> None:
    """Starts a new run, or resumes an interrupted one.

    Args:
        options: the given options by name.
        running: device and other settings of running.

    Raises:
        InputError: as :func:`cond_detr.train.run.new_run`, or if options are invalid or exclude each other.
        Interrupted: on a signal, after the state has been saved.
    """
    if distributed.restarted() and "output_dir" in options and exists(RunFolder(Path(options["output_dir"])).last):
        options = {
            "resume": "",
            **{name: value for name, value in options.items() if name not in {"weights", "config"}},
        }
    if "resume" not in options:
        new_run(new_config(options), running, options.get("weights"))
        return
    for name in ("weights", "config"):
        if name in options:
            raise InputError(f"`resume` and `{name}` exclude each other: a resumed run has its own {FIXED[name]}")
    checkpoint = Checkpoint.load(checkpoint_to_resume(options))
    finished(checkpoint)
    resumed_run(checkpoint, resumed_config(options, checkpoint), running)


FIXED = {"weights": "weights", "config": "settings"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr train``; see :func:`parser` for its arguments.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped the training.

    Raises:
        InputError: if an argument, the data set or a file cannot be used.
    """
    options = vars(parser().parse_args(argv))
    running = Running.of(given(options, RunConfig))
    with distributed.processes(running.device, running.config.timeout):
        try:
            train(options, running)
        except Interrupted as stop:
            if distributed.rank() == 0:
                say(str(stop))
            return stop.exit_code
    return 0


if __name__ == "__main__":
    run(main)

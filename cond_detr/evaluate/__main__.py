"""``cond-detr evaluate``: computes COCO metrics of a checkpoint on the validation images of a data set."""

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from cond_detr.cli import command_parser, positive, run
from cond_detr.data.description import describe_data
from cond_detr.errors import InputError, tell
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import evaluate, results_dict
from cond_detr.files import make_folder, read_json, write_json
from cond_detr.options import add_running
from cond_detr.weights.options import add_checkpoint, add_precision, opened

RESULTS = "results.json"


def table(evaluation: Evaluation) -> str:
    """Formats metrics and per-class results as a text table, in percent."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{value * 100:5.1f}"

    width = max(map(len, [*evaluation.per_class, "all classes"]))
    lines = [f"{'':{width}}     AP   AP50"]
    for name, values in evaluation.per_class.items():
        lines.append(f"{name:{width}}  {percent(values['AP'])}  {percent(values['AP50'])}")
    metrics = evaluation.metrics
    lines.append(f"{'all classes':{width}}  {percent(metrics['AP'])}  {percent(metrics['AP50'])}")
    lines.append("  ".join(f"{name} {percent(metrics[name]).strip()}" for name in ("AP75", "APS", "APM", "APL")))
    if evaluation.diagnosis is not None:
        costs = [f"{each.name} {percent(each.ap50).strip()}" for each in evaluation.diagnosis.errors]
        lines.append(f"AP50 lost to: {', '.join(costs)}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr evaluate``."""
    p = command_parser(
        "evaluate",
        __doc__,
        "--checkpoint runs/small/best.pt",
        "--checkpoint model.safetensors --coco-path COCO --batch-size 2",
    )
    add_checkpoint(p)
    p.add_argument(
        "--dataset-dir", "--coco-path", metavar="DIR", help="data set folder (default: that of the training)"
    )
    p.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for results.json (default: evaluation/ beside FILE)"
    )
    p.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images per forward pass (default: --eval-batch-size of the training)",
    )
    add_running(p, ["workers", "device", "threads", "evaluator"])
    add_precision(p)
    return p


# What results.json of an evaluation has; that of a training has an epoch as well
EVALUATED = {"checkpoint", "images", "AP", "per_class", "over_recall"}


def check_results(path: Path) -> None:
    """Checks that there is no file, or one that an earlier evaluation has written.

    Raises:
        InputError: if it is anything else, such as the results of a training.
    """
    if os.path.lexists(path):
        with contextlib.suppress(InputError):
            content = read_json(path, "results")
            if isinstance(content, dict) and content.keys() >= EVALUATED and "epoch" not in content:
                return
        raise InputError(f"{path} is not of an earlier evaluate; choose another --output-dir")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr evaluate``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the checkpoint, the data set or the output folder cannot be used.
    """
    options = parser().parse_args(argv)
    model = opened(options)
    beside = Path() if "://" in options.checkpoint else Path(options.checkpoint).parent
    folder = options.output_dir or beside / "evaluation"
    make_folder(folder)
    check_results(folder / RESULTS)
    dataset, evaluation = evaluate(
        model,
        dataset_dir=options.dataset_dir,
        batch_size=options.batch_size,
        workers=options.workers,
        evaluator=options.evaluator,
    )
    tell(*describe_data(dataset).split("\n"))
    write_json(
        folder / RESULTS,
        results_dict(evaluation, checkpoint=options.checkpoint, images=len(dataset)),
    )
    print(table(evaluation))
    tell(f"wrote {folder / RESULTS}")
    return 0


if __name__ == "__main__":
    run(main)

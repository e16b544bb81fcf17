"""The options of commands that use a trained model, such as ``--checkpoint``."""

import argparse
from typing import Any

from cond_detr import distributed
from cond_detr.config import TrainConfig, configure
from cond_detr.devices import device_named, use_threads
from cond_detr.models.model import Model
from cond_detr.options import add_option
from cond_detr.settings import declared
from cond_detr.weights.opening import open_model


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """Adds the option ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="best.pt of a run, a detector of another program, or a published name such as conditional-detr-r50",
    )


def add_precision(parser: argparse._ActionsContainer) -> None:
    """Adds the option ``--matmul-precision``, by default as in training."""
    precision = declared(TrainConfig)["matmul_precision"]
    shown = f"{str(precision.about['help']).partition(';')[0]} (default: as in training)"
    add_option(parser, precision, default=None, help=shown)


def opened(options: argparse.Namespace) -> Model:
    """Loads the model of the parsed ``--checkpoint``, with device, threads and precision as the options say.

    Raises:
        InputError: if the file or the device cannot be used.
    """
    values: dict[str, Any] = vars(options)
    use_threads(values.get("threads"))
    device = distributed.local_device(device_named(values.get("device", "auto")))
    model = open_model(options.checkpoint)
    model.network.to(device)
    if values.get("matmul_precision"):
        model.config = configure(model.config, {"matmul_precision": options.matmul_precision})
    return model

"""Hours and cost of a training on 1, 8 and 64 GPUs, from measured parts.

An epoch takes the slowest of three: the steps with their exchange of gradients, the cores that prepare images, and the
storage that gives them. Then comes the evaluation. docs/scale.md says where the defaults come from.
"""

import argparse
import math
from dataclasses import dataclass

GIGA = 1e9


@dataclass(frozen=True)
class Parts:
    """What was measured, or is asked for. Rates are per second.

    Attributes:
        images: training images.
        epochs: passes over them.
        batch: images per GPU and step.
        step_rate: images of a GPU, from forward to update, without exchange.
        core_rate: images that a core prepares.
        cores: cores per GPU.
        image_bytes: bytes of an image file.
        storage: bytes of the storage for all GPUs of a machine.
        parameters: of the network; their gradients are exchanged in fp32.
        link: bytes between GPUs of a machine.
        network: bytes between machines, for each GPU.
        machine: GPUs of a machine.
        val_images: images of an evaluation.
        evaluate_rate: images of a GPU in evaluation.
        metrics: seconds of the metrics, on one core.
        start: seconds until the first step.
        price: of a GPU and hour, in any currency.
    """

    images: float
    epochs: int
    batch: int
    step_rate: float
    core_rate: float
    cores: int
    image_bytes: float
    storage: float
    parameters: float
    link: float
    network: float
    machine: int
    val_images: float
    evaluate_rate: float
    metrics: float
    start: float
    price: float


DEFAULTS = Parts(
    images=118_287.0,
    epochs=50,
    batch=8,
    step_rate=262.0,
    core_rate=107.0,
    cores=16,
    image_bytes=163e3,
    storage=2 * GIGA,
    parameters=43.4e6,
    link=300 * GIGA,
    network=25 * GIGA,
    machine=8,
    val_images=5_000.0,
    evaluate_rate=500.0,
    metrics=1.5,
    start=60.0,
    price=4.0,
)


@dataclass(frozen=True)
class Prediction:
    """A training on some GPUs.

    Attributes:
        gpus: number of GPUs.
        hours: length.
        cost: price.
        epoch: seconds of an epoch's steps.
        evaluation: seconds of an evaluation.
        exchange: share of a step in which gradients are exchanged.
        limit: what decides the length of an epoch.
    """

    gpus: int
    hours: float
    cost: float
    epoch: float
    evaluation: float
    exchange: float
    limit: str


def predict(parts: Parts, gpus: int) -> Prediction:
    """Predicts a training on a number of GPUs."""
    compute = parts.batch / parts.step_rate
    # a ring sends and receives twice all gradients but a share; the slowest link decides
    bandwidth = parts.network if gpus > parts.machine else parts.link
    exchange = 2 * (gpus - 1) / gpus * 4 * parts.parameters / bandwidth
    machines = math.ceil(gpus / parts.machine)
    seconds = {
        "computing": parts.images / gpus / parts.batch * (compute + exchange),
        "preparing images": parts.images / gpus / (parts.core_rate * (parts.cores - 1)),
        "storage": parts.images / machines * parts.image_bytes / parts.storage,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    if limit == "computing" and exchange > compute:
        limit = "exchange of gradients"
    evaluation = parts.val_images / gpus / parts.evaluate_rate + parts.metrics
    hours = (parts.epochs * (max(seconds.values()) + evaluation) + parts.start) / 3600
    return Prediction(
        gpus,
        hours,
        hours * gpus * parts.price,
        max(seconds.values()),
        evaluation,
        exchange / (compute + exchange),
        limit,
    )


def table(parts: Parts, gpus: list[int]) -> str:
    """The predictions as lines of text."""
    lines = ["  GPUs     hours      cost  epoch (s)  evaluation (s)  exchange  limited by"]
    for found in (predict(parts, count) for count in gpus):
        lines.append(
            f"{found.gpus:6}  {found.hours:8.1f}  {found.cost:8,.0f}  {found.epoch:9.0f}  {found.evaluation:14.1f}  "
            f"{found.exchange:8.1%}  {found.limit}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table for the given numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    add = parser.add_argument
    add("--images", type=float, help="training images (default: COCO's)")
    add("--epochs", type=int, help="passes over them")
    add("--batch", type=int, help="images of a GPU in a step")
    add("--step-rate", type=float, help="images a second of a GPU in training")
    add("--core-rate", type=float, help="images a second that a core prepares")
    add("--cores", type=int, help="cores of each GPU")
    add("--image-bytes", type=float, help="bytes of an image file")
    add("--storage", type=float, help="bytes a second that a machine reads")
    add("--parameters", type=float, help="parameters of the network")
    add("--link", type=float, help="bytes a second between GPUs of a machine")
    add("--network", type=float, help="bytes a second of each GPU between machines")
    add("--machine", type=int, help="GPUs of a machine")
    add("--val-images", type=float, help="images of an evaluation")
    add("--evaluate-rate", type=float, help="images a second of a GPU in evaluation")
    add("--metrics", type=float, help="seconds that the metrics take")
    add("--start", type=float, help="seconds until the first step")
    add("--price", type=float, help="price of a GPU and hour")
    parser.set_defaults(**vars(DEFAULTS))
    options = vars(parser.parse_args())
    gpus = options.pop("gpus")
    if min(gpus) < 1 or options["cores"] < 2 or min(options.values()) < 0:
        parser.error("expected at least 1 GPU, at least 2 cores for each, and no number below 0")
    print(table(Parts(**options), gpus))


if __name__ == "__main__":
    main()

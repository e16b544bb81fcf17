"""Plots of a run's log."""

from collections.abc import Sequence
from typing import Any


def metrics_figure(history: Sequence[dict[str, Any]]) -> Any:
    """Plots learning curves: losses at the left, average precision at the right.

    Args:
        history: records of log.jsonl.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    # fixed margins: to find them by drawing would take half of the time
    figure = Figure(figsize=(10, 4.3))
    figure.subplots_adjust(0.065, 0.115, 0.985, 0.87, wspace=0.17)
    losses, precision = figure.subplots(1, 2)
    plot_losses(losses, history)
    plot_precision(precision, history)
    return figure


def plot_losses(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """Plots the losses over the epochs."""
    epochs = [record["epoch"] for record in history]
    for key, label in (
        ("train_loss", "total"),
        ("train_loss_classification", "classification"),
        ("train_loss_l1", "L1"),
        ("train_loss_giou", "GIoU"),
    ):
        axes.plot(epochs, [record[key] for record in history], marker=".", label=label)
    held_out = [record.get("val_loss") or float("nan") for record in history]  # logs of before have none
    axes.plot(epochs, held_out, marker=".", color="black", linestyle="--", label="total, held out")
    axes.set(xlabel="epoch", ylabel="loss (parts: last layer)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")  # powers would be typeset
    axes.yaxis.set_minor_formatter("")
    _finish(axes)


def plot_precision(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """Plots average precision over the epochs."""
    epochs = [record["epoch"] for record in history]
    for key in ("AP", "AP50", "AP75"):
        values = [float("nan") if record[key] is None else 100 * record[key] for record in history]
        axes.plot(epochs, values, marker=".", label=key)
    axes.set(xlabel="epoch", ylabel="average precision, %", ylim=(0, 100))
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    axes.legend(**above, ncols=3, handlelength=1.3, columnspacing=1)

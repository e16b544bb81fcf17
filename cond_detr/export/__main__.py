"""``cond-detr export``: exports a detector to one file for deployment."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cond_detr.cli import command_parser, run
from cond_detr.errors import tell
from cond_detr.export.write import FORMATS, export
from cond_detr.options import add_running
from cond_detr.weights.options import add_checkpoint, opened


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr export``."""
    p = command_parser(
        "export",
        __doc__,
        "--checkpoint runs/small/best.pt model.onnx",
        "--checkpoint runs/small/best.pt --half model.onnx",
        "--checkpoint runs/small/best.pt --format aot --device cuda model.pt2",
    )
    p.add_argument("target", type=Path, metavar="TARGET", help="file to write: .onnx, or .pt2 for torch")
    add_checkpoint(p)
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    p.add_argument("--format", choices=FORMATS, metavar="F", help=f"{formats} (default: onnx or torch, by the suffix)")
    p.add_argument(
        "--half", action="store_true", help="weights and most products in fp16: half of the size, faster on GPUs"
    )
    add_running(p, ["device", "threads"])
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr export``; see :func:`parser` for its arguments.

    Returns:
        The exit code.

    Raises:
        InputError: if the checkpoint, the format or the file name cannot be used, or a package is missing.
    """
    options = parser().parse_args(argv)
    export(opened(options), options.target, options.format, half=options.half)
    tell(f"wrote {options.target}: images (B, 3, H, W) in, the best detections of each out")
    return 0


if __name__ == "__main__":
    run(main)

"""Detection with exported files."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cond_detr.data.images import to_network_input
from cond_detr.errors import InputError, is_short_of_memory, need, shown
from cond_detr.export.about import KEY, About
from cond_detr.models.predictions import Ranked
from cond_detr.paths import as_path, is_file, why_no_file
from cond_detr.predict.detections import Detections, in_pixels
from cond_detr.predict.predictor import Means, Predictor


class Exported(Predictor):
    """A detector in an exported file.

    An ONNX file is data, and safe to open. A .pt2 file is a program: torch unpickles parts of it and loads compiled
    code from it, so opening one can run any code that its author put there, and needs explicit consent.

    Args:
        path: a file that :func:`cond_detr.export.export` wrote.
        trust_code: consent to run the code in a .pt2 file. Give it only for files that you made, or that come from
            someone you trust.

    Raises:
        InputError: if the file is missing, damaged or something else, it is a program without consent, or a package is
            missing.
    """

    def __init__(self, path: str | Path, *, trust_code: bool = False) -> None:
        path = as_path(path)
        if not is_file(path):
            raise InputError(f"exported file {path} {why_no_file(path)}")
        if path.suffix not in {".onnx", ".pt2"}:
            raise InputError(f"exported file {path} must end in .onnx or .pt2")
        if path.suffix == ".pt2" and trust_code is not True:
            raise InputError(
                f"exported file {path} is a program, which can do anything to this machine; if you made it or trust "
                "who did, open it with trust_code=True, otherwise use an ONNX file"
            )
        if path.suffix == ".onnx":
            need("export", "onnxruntime")
        self.path = path
        try:
            self.graph, about = _open_onnx(path) if path.suffix == ".onnx" else _run_program(path)
            self.about = About.read(about)
        except InputError as error:
            raise InputError(f"exported file {path} cannot be used: {error}") from None
        except Exception:  # a damaged file can raise anything
            raise InputError(
                f"exported file {path} cannot be read: it is damaged, or nothing that was exported here"
            ) from None

    def means(self) -> Means:
        """What searches are done with."""
        return Means(self._detect, self.about.input_size, self.about.classes, self.about.threshold)

    def _detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Detections of any score; one image at a time, as the graph takes it."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: Image.Image) -> Detections:
        about = self.about
        pixels = to_network_input(image, about.image_size, about.max_size)
        if self.path.suffix == ".pt2" and min(pixels.shape[1:]) <= about.stride:
            # torch.export takes a feature map of one column for a case of its own
            raise InputError(
                f"image of {image.width}x{image.height} pixels is too narrow for {self.path}: the network gets "
                f"{pixels.shape[2]}x{pixels.shape[1]}, and torch programs need more than the stride, {about.stride}"
            )
        try:
            found = self.graph(pixels[None])
        except Exception as error:  # a graph that somebody has changed can raise anything
            if is_short_of_memory(error):
                raise
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"exported file {self.path} cannot be run: {shown(said)}") from None
        if not _fits(found, len(about.classes)):
            raise InputError(f"exported file {self.path} cannot be used: its graph gives no detections of its classes")
        if ((found.scores < -ROUNDED) | (found.scores > 1 + ROUNDED)).any():
            worst = found.scores.flatten()[(found.scores - 0.5).abs().argmax()]
            raise InputError(
                f"exported file {self.path} cannot be used: expected scores from 0 to 1, and its graph gives {worst:g}"
            )
        found = found._replace(scores=found.scores.clamp(0, 1))
        return in_pixels(found, [image.size], about.classes)[0]


Graph = Callable[[Tensor], Ranked]
# By which a score may be beyond 0 or 1: onnxruntime's sigmoid can be a bit more than 1
ROUNDED = 1e-3
# onnxruntime's name for them
ERRORS = 3


def _fits(found: Ranked, num_classes: int) -> bool:
    """Whether the output of a graph for one image can be detections of so many classes."""
    count = found.scores.shape[-1:]
    if found.scores.shape != (1, *count) or found.labels.shape != (1, *count) or found.boxes.shape != (1, *count, 4):
        return False
    floats = found.scores.is_floating_point() and found.boxes.is_floating_point()
    return (
        floats and found.labels.dtype == torch.int64 and not ((found.labels < 0) | (found.labels >= num_classes)).any()
    )


def _open_onnx(path: Path) -> tuple[Graph, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS  # what it says of its own optimisations is nothing to act on
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    if [each.name for each in session.get_inputs()] != ["images"] or len(session.get_outputs()) != len(Ranked._fields):
        raise InputError("its graph has other inputs or outputs than what was exported here")

    def graph(images: Tensor) -> Ranked:
        return Ranked(*map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    return graph, session.get_modelmeta().custom_metadata_map[KEY]


def _run_program(path: Path) -> tuple[Graph, str]:
    """Loads a program of torch.export or AOTInductor, and runs the code in it."""
    with zipfile.ZipFile(path) as archive:
        compiled = any("aotinductor" in name for name in archive.namelist())
    if compiled:
        package = torch._inductor.aoti_load_package(str(path))
        metadata = package.get_metadata()
        place = metadata["AOTI_DEVICE_KEY"]
        return lambda images: Ranked(*package(images.to(place))), metadata[KEY]
    extra = {KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()
    device = next(module.parameters()).device
    return torch.inference_mode()(lambda images: Ranked(*module(images.to(device)))), extra[KEY]

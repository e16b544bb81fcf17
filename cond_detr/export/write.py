"""Export of a detector to one file for deployment.

The graph maps normalised images to the best detections. How images are resized and normalised, and the class names, are
in the metadata of the file.
"""

import contextlib
import io
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cond_detr.errors import InputError, need, shown
from cond_detr.export.about import KEY, LAYOUT, About
from cond_detr.export.onnx_half import in_fp16
from cond_detr.files import make_folder, replacing
from cond_detr.models.attention import ConditionalCrossAttention
from cond_detr.models.model import Model, unfused
from cond_detr.models.normalization import FrozenBatchNorm2d
from cond_detr.models.predictions import Ranked, best
from cond_detr.paths import as_path, exists, is_file, why_no_file

FORMATS = {
    "onnx": "for ONNX Runtime and others that read ONNX",
    "torch": "a torch.export program (opening it runs code in it)",
    "aot": "a program compiled by AOTInductor for this device and processor",
}
OPSET = 18


class Exportable(nn.Module):
    """The network with post-processing, in plain torch operations.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = unfused(model).network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores, labels and boxes as in :class:`~cond_detr.models.predictions.Ranked`, of (B, 3, H, W) images."""
        return tuple(best(self.model(images), softmax=self.model.softmax))


class HalfExportable(Exportable):
    """The same in autocast to fp16, with fp16 weights of all layers that run so; input and output are fp32.

    Scores of cross-attention stay in fp32, as in :func:`~cond_detr.export.onnx_half.in_fp16`.

    Args:
        model: the model, which is left as it is.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.copy())
        self.model.eval()
        for each in self.model.modules():
            if isinstance(each, ConditionalCrossAttention):
                each.fp32_scores = True
        layers = [each for each in self.model.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
        in_fp32 = set()
        kind = model.device.type

        def note(layer: nn.Module, _: object) -> None:
            if not torch.is_autocast_enabled(kind):
                in_fp32.add(layer)

        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        with torch.no_grad():
            self(example(model))
        for hook in hooks:
            hook.remove()
        for layer in layers:
            if layer not in in_fp32:
                layer.half()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the base class."""
        with torch.autocast(images.device.type, dtype=torch.float16):
            predictions = self.model(images)
        return tuple(best(predictions, softmax=self.model.softmax))


def example(model: Model) -> Tensor:
    """Images that a model takes."""
    side = 4 * model.stride
    return torch.zeros(2, 3, side, side + model.stride, device=model.device)


@torch.no_grad()
def trace(model: Model, *, half: bool = False) -> ExportedProgram:
    """Traces the graph of a model for dynamic batch size, height and width."""
    module = (HalfExportable if half else Exportable)(model).to(model.device).eval()
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    return torch.export.export(module, (example(model),), dynamic_shapes=sizes)


def export(model: Model, path: str | Path, kind: str | None = None, *, half: bool = False) -> None:
    """Writes a file for deployment.

    Args:
        model: the model; AOTInductor compiles for the device that it is on.
        path: the file to write.
        kind: one of :data:`FORMATS`; by default "onnx" if the file ends in .onnx, else "torch".
        half: whether weights and most products are fp16: half of the size, and faster where hardware has them. Inputs
            and outputs stay fp32.

    Raises:
        InputError: if the format is unknown, the suffix is not the format's, the file cannot be written, or a package
            is missing.
    """
    path = as_path(path)
    if kind is None:
        if path.suffix not in (".onnx", ".pt2"):
            raise InputError(f"{path} should end in .onnx or .pt2")
        kind = "onnx" if path.suffix == ".onnx" else "torch"
    if not isinstance(kind, str) or kind not in FORMATS:
        raise InputError(f"unknown format {shown(kind)}; there are {', '.join(FORMATS)}")
    suffix = ".onnx" if kind == "onnx" else ".pt2"
    if path.suffix != suffix:
        raise InputError(f"{path} should end in {suffix} for format {kind}")
    if kind == "onnx":
        need("export", "onnx", "onnxscript", *["onnxruntime"] * half)
    if half:
        check_fits_half(model)
    make_folder(path.parent)
    if exists(path) and not is_file(path):
        raise InputError(f"{path} {why_no_file(path)}")
    if os.path.lexists(path) and not is_exported(path):
        raise InputError(f"{path} is there already, and was not exported here; choose another name")
    # fails now, and not after minutes, if it cannot be written; torch's own writer aborts when a disk is full
    try:
        with replacing(path) as file, quiet():
            file.write(content(model, kind, half=half))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def is_exported(path: Path) -> bool:
    """Whether a file is one that :func:`export` has written, by its metadata, or is empty, as a temporary one."""
    if not is_file(path):
        return False
    content = path.read_bytes()
    # files of earlier versions do not say the layout
    earlier = all(name.encode() in content for name in (KEY, "image_size", "max_size", "stride"))
    return not content or earlier or LAYOUT.encode() in content


def cast_to_half(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What becomes fp16: parameters, and what statistics of frozen norms amount to, but not these themselves."""
    yield from network.named_parameters()
    for name, module in network.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            for part, tensor in zip(("scale", "shift"), module.affine(), strict=True):
                yield f"{name}'s {part}", tensor


def check_fits_half(model: Model) -> None:
    """Checks that no weight is beyond fp16's largest number: a converter would cut it off without a word.

    Raises:
        InputError: if one is.
    """
    most = torch.finfo(torch.float16).max
    for name, tensor in cast_to_half(model.network):
        largest = float(tensor.detach().abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if math.isnan(largest):
            raise InputError(f"the weights cannot be fp16: {name} has values that are not finite")
        if largest > most:
            raise InputError(f"the weights cannot be fp16: {name} has {largest:.3g}, more than {most:g}")


def content(model: Model, kind: str, *, half: bool) -> bytes:
    """The content of a file of one of :data:`FORMATS`."""
    about = About.of(model).write()
    if kind == "onnx":  # which has a converter of its own
        return onnx_content(trace(model), about, half=half)
    program = trace(model, half=half)
    file = io.BytesIO()
    if kind == "torch":
        torch.export.save(program, file, extra_files={KEY: about})
        return file.getvalue()
    # headers compiled in advance pay for themselves from the third program on
    options = {"aot_inductor.metadata": {KEY: about}, "aot_inductor.precompile_headers": False}
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=f"{folder}/model.pt2", inductor_configs=options
        )
        return Path(package).read_bytes()


def onnx_content(program: ExportedProgram, about: str, *, half: bool) -> bytes:
    """An ONNX model with names for its inputs, outputs and their dimensions; in fp16 but for these, if ``half``."""
    made = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=list(Ranked._fields),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props[KEY] = about
    model = made.model_proto
    sizes = [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim]
    names = {symbol: name for symbol, name in zip(sizes, ("batch", "", "height", "width"), strict=True) if symbol}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param)
    if half:
        model = in_fp16(model)
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what torch's exporters say of packages and interfaces that nobody here asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

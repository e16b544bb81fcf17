"""Export of a detector to one file for deployment.

The graph maps normalised images to the best detections. Image sizes and class names are in the metadata of the file.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cond_detr.errors import InputError, need, shown
from cond_detr.export.about import KEY, About
from cond_detr.files import as_path, make_folder, why_no_file
from cond_detr.models.model import Model, unfused
from cond_detr.models.predictions import Ranked, best

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


@torch.no_grad()
def trace(model: Model) -> ExportedProgram:
    """Traces the graph of a model for dynamic batch size, height and width."""
    side = 4 * model.stride
    images = torch.zeros(2, 3, side, side + model.stride, device=model.device)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    return torch.export.export(Exportable(model).to(model.device).eval(), (images,), dynamic_shapes=sizes)


def export(model: Model, path: str | Path, kind: str | None = None) -> None:
    """Writes a file for deployment.

    Args:
        model: the model; AOTInductor compiles for the device that it is on.
        path: the file to write.
        kind: one of :data:`FORMATS`; by default "onnx" if the file ends in .onnx, else "torch".

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
    make_folder(path.parent)
    _check_writable(path)
    about = About.of(model).write()
    if kind == "onnx":
        _write_onnx(trace(model), path, about)
    elif kind == "torch":
        torch.export.save(trace(model), path, extra_files={KEY: about})
    else:
        torch._inductor.aoti_compile_and_package(
            trace(model), package_path=str(path), inductor_configs={"aot_inductor.metadata": {KEY: about}}
        )


def _check_writable(path: Path) -> None:
    """Checks now, and not after minutes, that a file can be written."""
    if path.exists() and not path.is_file():  # opening a pipe that nobody reads would wait for ever
        raise InputError(f"{path} {why_no_file(path)}")
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _write_onnx(program: ExportedProgram, path: Path, about: str) -> None:
    need("export", "onnx", "onnxscript")
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
    made.save(path)

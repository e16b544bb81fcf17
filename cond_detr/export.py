"""``cond-detr export``: a detector as one file for deployment, and the same detections from the file as from a model.

The graph takes normalised images and gives the best detections; how images are prepared, and the class names, are
written into the file.
"""

import argparse
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cond_detr.classes import Classes
from cond_detr.cli import command_parser, device_argument, make_folder, run
from cond_detr.data.transforms import ImageLike, is_one, open_image, to_network_input
from cond_detr.errors import InputError, need
from cond_detr.models import Detector, build
from cond_detr.predictions import Detections, Ranked, best, check_threshold, in_pixels

FORMATS = {
    "onnx": "for ONNX Runtime and what else reads ONNX",
    "torch": "a torch.export program (opening one runs what is in it)",
    "aot": "a program compiled by AOTInductor for the device and the processor at hand",
}
KEY = "cond_detr"
OPSET = 18


@dataclass(frozen=True)
class About:
    """What the file says of itself.

    Attributes:
        classes: that are told apart.
        image_size, max_size: of the short side, and most pixels of the long one.
        stride: of the network; smaller images are refused.
    """

    classes: Classes
    image_size: int
    max_size: int
    stride: int

    @classmethod
    def of(cls, model: Detector) -> "About":
        data = model.config.data
        return cls(model.classes, data.image_size, data.max_size, model.backbone.stride)

    def write(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "About":
        values = json.loads(text)
        names, category_ids = values["classes"]["names"], values["classes"]["category_ids"]
        return cls(**{**values, "classes": Classes(tuple(names), tuple(category_ids))})


class Exportable(nn.Module):
    """Images (B, 3, H, W) to the best detections, with post-processing inside."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        config = replace(model.config, model=replace(model.config.model, fused_attn=False))
        self.model = build(config, model.classes)
        self.model.load_state_dict(model.state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores, labels and boxes as in :class:`Ranked`."""
        return tuple(best(self.model(images), softmax=self.model.softmax))


@torch.no_grad()
def trace(model: Detector) -> ExportedProgram:
    """The graph for any number of images of any size, all of one size."""
    device = model.query_embed.weight.device
    side = 4 * model.backbone.stride
    images = torch.zeros(2, 3, side, side + model.backbone.stride, device=device)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    return torch.export.export(Exportable(model).to(device).eval(), (images,), dynamic_shapes=sizes)


def export(model: Detector, path: str | Path, kind: str | None = None) -> None:
    """Writes a file for deployment.

    Args:
        model: to export, from the device that it is on.
        path: of the file.
        kind: one of :data:`FORMATS`; by default "onnx" for a name that ends in .onnx, else "torch".

    Raises:
        InputError: the format is unknown, the file's name is not of that kind, or a package is missing.
    """
    path = Path(path)
    kind = kind or ("onnx" if path.suffix == ".onnx" else "torch")
    suffix = ".onnx" if kind == "onnx" else ".pt2"
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; there are {', '.join(FORMATS)}")
    if path.suffix != suffix:
        raise InputError(f"{path} should end in {suffix} for format {kind}")
    make_folder(path.parent)
    with path.open("ab"):  # it can be written, then: finding that out after minutes would be late
        pass
    about = About.of(model).write()
    if kind == "onnx":
        _write_onnx(trace(model), path, about)
    elif kind == "torch":
        torch.export.save(trace(model), path, extra_files={KEY: about})
    else:
        torch._inductor.aoti_compile_and_package(
            trace(model), package_path=str(path), inductor_configs={"aot_inductor.metadata": {KEY: about}}
        )


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


class Exported:
    """Detections from an exported file, as :meth:`Detector.predict` makes them from a checkpoint.

    An ONNX file is data, and any can be opened. A .pt2 file is a program: torch unpickles parts of it and loads
    compiled code from it, and whoever made the file decides what that does. So it takes a consent to open one.

    Args:
        path: of a file that :func:`export` wrote.
        trust_code: run what is in a .pt2 file. Say so only of files that you made, or got from someone you trust.

    Raises:
        InputError: the file is missing, damaged or something else, it is a program and not trusted, or a package is
            missing.
    """

    def __init__(self, path: str | Path, *, trust_code: bool = False) -> None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"exported file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
        if path.suffix not in {".onnx", ".pt2"}:
            raise InputError(f"exported file {path} must end in .onnx or .pt2")
        if path.suffix == ".pt2" and trust_code is not True:
            raise InputError(
                f"exported file {path} is a program, which can do anything to this machine; if you made it or trust "
                "who did, open it with trust_code=True, otherwise use an ONNX file"
            )
        try:
            self.graph, about = _open_onnx(path) if path.suffix == ".onnx" else _run_program(path)
            self.about = About.read(about)
        except InputError:
            raise
        except Exception:  # a damaged file can raise anything
            raise InputError(
                f"exported file {path} cannot be read: it is damaged, or nothing that was exported here"
            ) from None

    @overload  # a string is a sequence of strings, but not meant
    def predict(self, images: ImageLike, threshold: float = 0.3) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], threshold: float = 0.3) -> list[Detections]: ...

    def predict(self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.3) -> Detections | list[Detections]:
        """As :meth:`Detector.predict`."""
        check_threshold(threshold)
        if is_one(images):
            return self._detect(images, threshold)
        return [self._detect(image, threshold) for image in images]

    def _detect(self, source: ImageLike, threshold: float) -> Detections:
        about = self.about
        image = open_image(source, stride=about.stride)
        pixels = to_network_input(image, about.image_size, about.max_size)
        return in_pixels(self.graph(pixels[None]), [image.size], about.classes)[0].above(threshold)


Graph = Callable[[Tensor], Ranked]


def _open_onnx(path: Path) -> tuple[Graph, str]:
    need("export", "onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())

    def graph(images: Tensor) -> Ranked:
        return Ranked(*map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    return graph, session.get_modelmeta().custom_metadata_map[KEY]


def _run_program(path: Path) -> tuple[Graph, str]:
    """Loads a program of torch.export or AOTInductor, which can run whatever its maker wanted."""
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


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "export",
        __doc__,
        "--checkpoint runs/small/best.pt model.onnx",
        "--checkpoint runs/small/best.pt --format aot --device cuda model.pt2",
    )
    p.add_argument("target", type=Path, metavar="TARGET", help="file to write: .onnx, or .pt2 for torch")
    p.add_argument("--checkpoint", required=True, metavar="FILE", help="best.pt of a run, or another's detector")
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    p.add_argument("--format", choices=FORMATS, metavar="F", help=f"{formats} (default: onnx or torch, by the suffix)")
    p.add_argument("--device", default="auto", metavar="D", help="to export for (default: cuda if there is one)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    model = Detector.from_checkpoint(options.checkpoint).to(device_argument(options.device))
    export(model, options.target, options.format)
    print(f"wrote {options.target}: images (B, 3, H, W) in, the best detections of each out")
    return 0


if __name__ == "__main__":
    run(main)

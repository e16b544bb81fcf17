"""Exported files give what the model gives, for any number and size of images, and the same detections."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cond_detr import DETR, ConditionalDETR, Detector, InputError, cli
from cond_detr.boxes import iou
from cond_detr.classes import Classes
from cond_detr.config import configure
from cond_detr.data import shapes
from cond_detr.export import Exported, export
from cond_detr.export import __main__ as exporting
from cond_detr.export.about import KEY
from cond_detr.export.onnx_half import PRODUCTS, nodes_of_scores
from cond_detr.export.write import OPSET, Exportable, HalfExportable, quiet
from cond_detr.models.attention import ConditionalCrossAttention
from cond_detr.models.predictions import Ranked
from cond_detr.presets import as_detr, preset
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr_kernels.conditional_attention import conditional_attention_reference

TRAINED = Path(__file__).resolve().parents[2] / "benchmarks/results/cpu/dc5_shapes.safetensors"
FILES = {"onnx": "x.onnx", "torch": "x.pt2", "aot": "x.pt2"}


def detector(kind: type[Detector], **settings: Any) -> Detector:
    """Untrained, with weights that make its scores differ."""
    torch.manual_seed(0)
    base = configure(preset("shapes"), settings)
    config = as_detr(base) if kind is DETR else base
    model = kind.new(config, Classes(("cat", "dog", "owl"), (5, 3, 9)))
    model.network.eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.network.class_head.weight.normal_()
    return model


def compared(got: Ranked, want: Ranked, tolerance: float, tie: float) -> float:
    """The share of detections that are the same; what scores the same but for ``tie`` may come in any order."""
    torch.testing.assert_close(got.scores, want.scores, rtol=0, atol=tolerance)
    gaps = F.pad(want.scores[:, :-1] - want.scores[:, 1:], (1, 1), value=1.0)
    apart = (gaps[:, :-1] > tie) & (gaps[:, 1:] > tie)
    assert torch.equal(got.labels[apart], want.labels[apart])
    torch.testing.assert_close(got.boxes[apart], want.boxes[apart], rtol=0, atol=tolerance)
    return float(apart.float().mean())


@pytest.mark.parametrize(
    ("kind", "form"), [(ConditionalDETR, "onnx"), (ConditionalDETR, "torch"), (ConditionalDETR, "aot"), (DETR, "onnx")]
)
def test_gives_what_the_model_gives(kind: type[Detector], form: str, tmp_path: Path) -> None:
    # AOTInductor compiles each layer anew; what layers share is seen in the program that it compiles
    layers = {"encoder_layers": int(form != "aot"), "decoder_layers": 2}
    model = detector(kind, **layers)
    path = tmp_path / FILES[form]
    if form == "aot":  # as the command does: a compilation of its own
        Checkpoint(tmp_path / "best.pt", model.config, model.classes, model.network.state_dict()).save()
        arguments = ["--checkpoint", tmp_path / "best.pt", path, "--device", "cpu", "--format", form]
        command = [sys.executable, "-m", "cond_detr.export", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        export(model, path, form)
    exported = Exported(path, trust_code=True)
    assert exported.about.classes == model.classes
    with torch.no_grad():
        for batch in (1, 3):
            for height, width in ((64, 64), (40, 100), (97, 61)):
                images = torch.randn(batch, 3, height, width)
                same = compared(exported.graph(images), Ranked(*Exportable(model).eval()(images)), 1e-4, 1e-5)
                # untrained object queries of plain DETR come to nearly the same answer
                assert same > (0.1 if kind is ConditionalDETR else 0.01)
    photo = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    (got,), (want,) = exported.predict([photo], 0.01), model.predict([photo], 0.01)
    assert sorted(got.names) == sorted(want.names)
    torch.testing.assert_close(got.boxes.sum(0), want.boxes.sum(0), rtol=1e-3, atol=1e-2)  # in any order
    torch.testing.assert_close(got.scores, want.scores, rtol=0, atol=1e-4)


def test_half(tmp_path: Path) -> None:
    """As a torch program; of ONNX below."""
    model = detector(ConditionalDETR, encoder_layers=1, decoder_layers=2)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    export(model, tmp_path / "half.pt2", half=True)
    in_fp32 = sum(tensor.nbytes for tensor in before.values())
    assert (tmp_path / "half.pt2").stat().st_size < 0.9 * in_fp32  # of these small layers, the graph is a good part
    exported = Exported(tmp_path / "half.pt2", trust_code=True)
    with torch.no_grad():
        for batch, height, width in ((1, 64, 64), (2, 40, 100), (1, 97, 61)):
            images = torch.randn(batch, 3, height, width)
            got = exported.graph(images)
            assert (got.scores.dtype, got.boxes.dtype) == (torch.float32, torch.float32)
            compared(got, Ranked(*Exportable(model).eval()(images)), 2e-2, 4e-2)
    after = model.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in after.items())


def test_half_rounds_no_scores(tmp_path: Path) -> None:
    """Of a score of 50, fp16 would round away 2 % of the weight."""
    model = detector(ConditionalDETR, encoder_layers=1, decoder_layers=1)
    cross = [each for each in HalfExportable(model).modules() if isinstance(each, ConditionalCrossAttention)]
    assert len(cross) == 1
    heads = [(10 if i < 2 else 1) * torch.randn(1, 4, 20, 16).half() for i in range(5)]
    exact = conditional_attention_reference(*(part.double() for part in heads))
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(cross[0]._reference(heads, None, 0.0).double(), exact, rtol=0, atol=1e-5)
    assert not any(getattr(each, "fp32_scores", False) for each in model.network.modules())

    export(model, tmp_path / "half.onnx", half=True)
    onnx.checker.check_model(tmp_path / "half.onnx")
    graph = onnx.load(tmp_path / "half.onnx").graph
    maker = {output: node for node in graph.node for output in node.output}
    named = {node.name: node for node in graph.node}
    scores = [named[name] for name in nodes_of_scores(graph)]
    assert not any(node.op_type == "Cast" for node in scores)
    products = [node for node in scores if node.op_type == "MatMul"]
    assert len(products) == 3  # of the encoder, the queries, and across
    for node in products:  # what they take is cast, or comes from what stays in fp32
        assert not any(maker[name].op_type in PRODUCTS for name in node.input)
    halves = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16]
    whole = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    assert sum(len(each.raw_data) for each in halves) > 5 * sum(len(each.raw_data) for each in whole)


def test_half_finds_the_same_objects(tmp_path: Path) -> None:
    """A trained detector, on held-out images of the built-in data."""
    model = ConditionalDETR.from_checkpoint(TRAINED)
    export(model, tmp_path / "half.onnx", half=True)
    assert (tmp_path / "half.onnx").stat().st_size < 0.8 * TRAINED.stat().st_size
    half = Exported(tmp_path / "half.onnx")
    annotations, load = shapes.make_split("val", 35)
    images = [load(record.file_name, record.size) for record in annotations.records]
    same, total = 0, 0
    for one, other in zip(model.predict(images, 0.5), half.predict(images, 0.5), strict=True):
        for each in one:
            overlaps = iou(torch.tensor(each.box), other.boxes)
            same += bool(((overlaps > 0.95) & (other.labels == each.label)).any())
        total += len(one)
    assert total > 35
    assert same / total > 0.97


def test_half_has_no_room_for_large_weights(tmp_path: Path) -> None:
    """The converter would cut them off."""
    model = detector(ConditionalDETR, encoder_layers=0, decoder_layers=1)
    with torch.no_grad():
        model.network.get_parameter("decoder.layers.0.linear1.weight")[0, 0] = -7e4
    for name in ("x.onnx", "x.pt2"):
        with pytest.raises(InputError, match=r"cannot be fp16: decoder\..*weight has 7e\+04, more than 65504"):
            export(model, tmp_path / name, half=True)
    with torch.no_grad():
        model.network.get_parameter("decoder.layers.0.linear1.weight")[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"cannot be fp16: decoder\..*weight has values that are not finite"):
        export(model, tmp_path / "x.onnx", half=True)
    assert list(tmp_path.iterdir()) == []


def test_half_has_no_room_for_weights_that_become_large(tmp_path: Path) -> None:
    """ONNX's exporter multiplies those of a convolution by their normalisation."""
    model = detector(ConditionalDETR, encoder_layers=0, decoder_layers=1)
    with torch.no_grad():
        state = model.network.state_dict()
        state["backbone.conv1.weight"][0] = 300
        state["backbone.bn1.running_var"][0] = 1e-30
    with pytest.raises(InputError, match=r"of the ONNX model cannot be fp16: it has \d"):
        export(model, tmp_path / "x.onnx", half=True)


@pytest.mark.parametrize("half", [False, True])
def test_openvino_gives_what_the_model_gives(half: bool, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = detector(ConditionalDETR)
    export(model, tmp_path / "model.onnx", half=half)
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        for batch, height, width in ((1, 64, 64), (2, 40, 100), (1, 97, 61)):
            images = torch.randn(batch, 3, height, width)
            found = compiled({"images": images.numpy()})
            got = Ranked(*(torch.from_numpy(found[i]) for i in range(3)))
            near = (2e-2, 4e-2) if half else (1e-3, 1e-4)
            same = compared(got, Ranked(*Exportable(model).eval()(images)), *near)
            assert half or same > 0.3


@pytest.mark.parametrize("name", ["torch.onnx", "onnxscript.optimizer"])
def test_what_exporters_say_is_not_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        logging.getLogger(name).warning("of no interest")
    assert not caplog.records
    logging.getLogger(name).warning("of interest")
    assert caplog.records


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detector(ConditionalDETR)
    Checkpoint(tmp_path / "best.pt", model.config, model.classes, model.network.state_dict()).save()
    arguments = ["--checkpoint", str(tmp_path / "best.pt"), str(tmp_path / "out" / "x.pt2"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        cli.run(exporting.main, arguments)
    assert stop.value.code == 0
    assert "wrote" in capsys.readouterr().out
    Exported(tmp_path / "out" / "x.pt2", trust_code=True)


def test_a_scheduler_that_ends_it_leaves_nothing(tmp_path: Path) -> None:
    model = detector(ConditionalDETR, encoder_layers=0, decoder_layers=1)
    Checkpoint(tmp_path / "best.pt", model.config, model.classes, model.network.state_dict()).save()
    (tmp_path / "out").mkdir()
    arguments = ["--checkpoint", tmp_path / "best.pt", tmp_path / "out/x.pt2", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "cond_detr.export", *map(str, arguments)])
    while process.poll() is None and not list((tmp_path / "out").iterdir()):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 143
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConditionalDETR.new(preset("shapes"), Classes.numbered(2))
    with pytest.raises(InputError, match=r"x\.pt should end in \.onnx or \.pt2"):
        export(model, tmp_path / "x.pt")
    with pytest.raises(InputError, match="unknown format 'tflite'; there are onnx, torch, aot"):
        export(model, tmp_path / "x.pt2", "tflite")
    with pytest.raises(InputError, match=r"none\.onnx does not exist"):
        Exported(tmp_path / "none.onnx")
    for name in ("x.onnx", "x.pt2"):
        (tmp_path / name).write_bytes(b"no graph")
        with pytest.raises(InputError, match=f"exported file .*{name} cannot be read: ."):
            Exported(tmp_path / name, trust_code=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"this needs onnx and onnxscript: pip install 'cond-detr\[export\]'"):
        export(model, tmp_path / "x.onnx")


@pytest.mark.parametrize("name", ["x.onnx", "x.pt2"])
def test_only_what_was_exported_here_is_replaced(name: str, tmp_path: Path) -> None:
    model = ConditionalDETR.new(preset("shapes"), Classes.numbered(2))
    (tmp_path / name).write_bytes(b"a model of mine")
    with pytest.raises(InputError, match=rf"{name} is there already, and was not exported here; choose another name"):
        export(model, tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"a model of mine"
    (tmp_path / name).unlink()
    for _ in range(2):
        export(model, tmp_path / name)


def small_graph(path: Path, about: dict[str, Any], found: dict[str, np.ndarray], source: str = "images") -> None:
    """Writes an ONNX file that always finds the same, with metadata."""
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a)) for name, a in found.items()]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in found.items()
    ]
    inputs = [helper.make_tensor_value_info(source, TensorProto.FLOAT, [None, 3, None, None])]
    graph = helper.make_graph(nodes, "detector", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {KEY: json.dumps(about)})
    path.write_bytes(model.SerializeToString())


FOUND = {
    "scores": np.array([[0.9]], np.float32),
    "labels": np.array([[1]]),
    "boxes": np.zeros((1, 1, 4), np.float32),
}
ABOUT = {"classes": {"names": ["a", "b"], "category_ids": [1, 2]}, "image_size": 64, "max_size": 64, "stride": 8}


@pytest.mark.parametrize(
    ("about", "found", "sentence"),
    [
        ({"image_size": "64"}, {}, "`image_size` must be a whole number of at least 1"),
        ({"max_size": 1e9}, {}, "`max_size` must be a whole number"),
        ({"stride": 0}, {}, "stride must be a whole number"),
        ({"classes": {"names": ["a", 2], "category_ids": [1, 2]}}, {}, "the name of a class must be"),
        ({"classes": {"names": ["a"], "category_ids": [1]}}, {}, "no detections of its classes"),
        ({"classes": {"names": "ab", "category_ids": [1, 2]}}, {}, "names must be a list without repetitions"),
        ({"classes": {"names": ["a", "a"], "category_ids": [1, 2]}}, {}, "names must be a list without repetitions"),
        ({"classes": {"names": ["a", "b"], "category_ids": [1, 1]}}, {}, "category_ids must be a list without"),
        ({"mean": [0, 0, 0]}, {}, "its images have mean"),
        ({"layout": "NCHW, BGR"}, {}, "its images have layout 'NCHW, BGR'"),
        ({}, {"labels": np.array([[-1]])}, "no detections of its classes"),
        ({}, {"labels": np.zeros((1, 1), np.float32)}, "no detections of its classes"),
        ({}, {"boxes": np.zeros((1, 2, 4), np.float32)}, "no detections of its classes"),
        ({}, {"scores": np.array([[1.0 + 1e-2]], np.float32)}, "expected scores from 0 to 1, and its graph gives 1.01"),
        ({}, {"scores": np.array([[1.5]], np.float32)}, "expected scores from 0 to 1, and its graph gives 1.5"),
        ({}, {"scores": np.array([[-0.5]], np.float32)}, "expected scores from 0 to 1, and its graph gives -0.5"),
        ({}, {"more": np.zeros(1)}, "other inputs or outputs"),
    ],
)
def test_files_that_others_have_changed(
    about: dict[str, Any], found: dict[str, np.ndarray], sentence: str, tmp_path: Path
) -> None:
    image = Image.new("RGB", (64, 64))
    small_graph(tmp_path / "good.onnx", ABOUT, FOUND)
    assert Exported(tmp_path / "good.onnx").predict(image).names == ["b"]
    small_graph(tmp_path / "bad.onnx", {**ABOUT, **about}, {**FOUND, **found})
    with pytest.raises(InputError, match=rf"exported file .*bad\.onnx cannot be used: .*{sentence}"):
        Exported(tmp_path / "bad.onnx").predict(image)


def test_a_score_that_is_rounded(tmp_path: Path) -> None:
    """onnxruntime's sigmoid gives a bit more than 1 for some numbers."""
    scores = np.nextafter(np.ones((1, 1), np.float32), np.float32(2))
    small_graph(tmp_path / "a.onnx", ABOUT, {**FOUND, "scores": scores})
    assert Exported(tmp_path / "a.onnx").predict(Image.new("RGB", (64, 64))).scores.tolist() == [1]


def test_a_graph_that_cannot_run(tmp_path: Path) -> None:
    """As of an image of one size."""
    found = [helper.make_node("Reshape", ["images", "shape"], ["scores"])]
    found += [
        helper.make_node("Constant", [], [n], value=numpy_helper.from_array(FOUND[n])) for n in ("labels", "boxes")
    ]
    shape = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 7])))
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in FOUND.items()
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 3, None, None])
    graph = helper.make_graph([shape, *found], "detector", [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {KEY: json.dumps(ABOUT)})
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"exported file .*bad\.onnx cannot be run: .*Reshape"):
        Exported(tmp_path / "bad.onnx").predict(Image.new("RGB", (64, 64)))


def test_a_graph_of_something_else(tmp_path: Path) -> None:
    small_graph(tmp_path / "bad.onnx", ABOUT, FOUND, source="text")
    with pytest.raises(InputError, match=r"bad\.onnx cannot be used: its graph has other inputs or outputs"):
        Exported(tmp_path / "bad.onnx")

"""Files that somebody made to do harm, or that bad luck has made: one sentence each, and nothing happens."""

import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cond_detr import ConditionalDETR, Detector, InputError, cli
from cond_detr.attention_maps import __main__ as attention_maps
from cond_detr.check_data import __main__ as check_data
from cond_detr.classes import Classes
from cond_detr.config import to_dict
from cond_detr.data.annotation_checks import read_annotations
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.images import open_image
from cond_detr.data.layouts import FolderLoader, exif_convention
from cond_detr.export import Exported
from cond_detr.options import read_config
from cond_detr.predict import __main__ as predict
from cond_detr.predict.drawing import draw_detections
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.foreign import classes_beside
from cond_detr.weights.reading import open_source

MODEL = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
MODEL.network.eval()


def content(**changes: Any) -> dict[str, Any]:
    """Of a checkpoint, as it is saved."""
    classes = {"names": ["a", "b"], "category_ids": [1, 2]}
    good = {
        "format": "cond_detr/1",
        "config": to_dict(MODEL.config),
        "classes": classes,
        "model": MODEL.network.state_dict(),
    }
    return {**good, **changes}


def config(section: str, **values: Any) -> dict[str, Any]:
    settings = to_dict(MODEL.config)
    return {**settings, section: {**settings[section], **values}}


def state(**tensors: Any) -> dict[str, Any]:
    return {**MODEL.network.state_dict(), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


BIAS = MODEL.network.state_dict()["class_head.bias"]
BAD_CHECKPOINTS = {
    "d_model as text": content(config=config("model", d_model="96")),
    "no heads": content(config=config("model", num_heads=0)),
    "negative queries": content(config=config("model", num_queries=-1)),
    "too many queries": content(config=config("model", num_queries=10**9)),
    "too many layers": content(config=config("model", encoder_layers=300000)),
    "dropout 5": content(config=config("model", dropout=5)),
    "unknown projection": content(config=config("model", projection="zzz")),
    "backbone as a list": content(config=config("model", backbone=[])),
    "unknown backbone": content(config=config("model", backbone="vit")),
    "image size 0": content(config=config("data", image_size=0)),
    "config as a list": content(config=[]),
    "section as text": content(config={**to_dict(MODEL.config), "model": "r50"}),
    "too few ids": content(classes={"names": ["a", "b"], "category_ids": [1]}),
    "a name of two lines": content(classes={"names": ["a", "b\nc"], "category_ids": [1, 2]}),
    "half a character": content(classes={"names": ["a", "\udce9"], "category_ids": [1, 2]}),
    "a number as name": content(classes={"names": ["a", 2], "category_ids": [1, 2]}),
    "text as id": content(classes={"names": ["a", "b"], "category_ids": [1, "2"]}),
    "no classes": content(classes=None),
    "number as key": content(model={**MODEL.network.state_dict(), 3: BIAS}),
    "no tensor": content(model=state(class_head__bias=[1.0, 2.0])),
    "tensors as a list": content(model=[BIAS]),
    "integers": content(model=state(class_head__bias=torch.zeros(2, dtype=torch.int64))),
    "complex": content(model=state(class_head__bias=torch.zeros(2, dtype=torch.complex64))),
    "sparse": content(model=state(class_head__bias=BIAS.to_sparse())),
    "not a number": content(model=state(class_head__bias=BIAS * float("nan"))),
    "average as a tensor": content(average=BIAS),
    "next version": content(format="cond_detr/2"),
    "bytes": bytearray(10),
}


OF_OTHERS = {
    "numbers for matrices": {"model": state(query_embed__weight=torch.zeros(()))},
    "projections that are not three": {"model": {"transformer.encoder.layers.0.self_attn.in_proj_weight": BIAS}},
    "not a number": {"model": state(class_head__weight=torch.full((2, 96), float("nan")))},
}
BAD_CHECKPOINTS |= OF_OTHERS


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path) -> None:
    torch.save(BAD_CHECKPOINTS[name], tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt") as error:
        Detector.from_checkpoint(tmp_path / "bad.pt")
    assert "\n" not in str(error.value)


def test_the_checkpoint_that_they_are_made_from_is_good(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "good.pt")
    assert Detector.from_checkpoint(tmp_path / "good.pt").classes.names == ("a", "b")


def test_compressed_archives_with_something_behind(tmp_path: Path) -> None:
    """Python does not take it for an archive then, and torch does."""
    torch.save(content(), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for entry in good.infolist():
            bad.writestr(entry.filename, good.read(entry), zipfile.ZIP_DEFLATED)
    with (tmp_path / "bad.pt").open("ab") as file:
        file.write(b"\0" * 67000)
    assert not zipfile.is_zipfile(tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt cannot be read"):
        Detector.from_checkpoint(tmp_path / "bad.pt")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def pickled(path: Path) -> bytes:
    """What makes the file ``path`` when it is unpickled."""
    buffer = io.BytesIO()
    torch.save(Touch(path), buffer)
    return buffer.getvalue()


def rewritten(good: Path, bad: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """An archive with other parts."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            for name, data in change(entry.filename, source.read(entry)):
                target.writestr(name, data)


def crafted(how: str, good: Path, bad: Path, code: bytes) -> None:
    """A .pt2 file that runs the pickled ``code`` when torch opens it; each way once got around a check of its parts."""

    def sample_inputs(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, code if name.endswith("sample_inputs/model.pt") else data)]

    def weights(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name.endswith("weights_config.json"):
            data = data.replace(b'"use_pickle": false', b'"use_pickle":true', 1)
        return [(name, code if name.endswith("weight_0") else data)]

    def other_case(name: str, data: bytes) -> list[tuple[str, bytes]]:
        name = name.replace("model.pt", "model.PT").replace("_config.json", "_config.JSON")
        return [(name, code if "sample_inputs" in name else data)]

    def opaque_objects(name: str, data: bytes) -> list[tuple[str, bytes]]:
        more = [("x/data/constants/custom_obj_0", code)] if name.endswith("weight_0") else []
        return [(name, data), *more]

    def nested(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, good.read_bytes() if name.endswith("weight_0") else data)]

    if how == "older layout":
        with zipfile.ZipFile(bad, "w") as archive:
            for name, data in (
                ("version", b"8"),
                ("serialized_state_dict.pt", code),
                ("serialized_constants.pt", code),
            ):
                archive.writestr(name, data)
    elif how == "two central directories":
        rewritten(good, bad, sample_inputs)
        bad.write_bytes(bad.read_bytes() + good.read_bytes())
    else:
        ways = {f.__name__.replace("_", " "): f for f in (sample_inputs, weights, other_case, opaque_objects, nested)}
        rewritten(good, bad, ways[how])


WAYS = [
    "sample inputs", "weights", "other case", "two central directories", "older layout", "opaque objects", "nested"
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    MODEL.export(path)
    return path


@pytest.mark.parametrize("name", ["bad.pt2", "bad.onnx", "bad.PT2", "bad.zip", "bad"])
@pytest.mark.parametrize("how", WAYS)
def test_programs_are_not_run(
    how: str, name: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loader of torch's is reached, whatever is in the file, and whatever it is called."""
    crafted(how, program, tmp_path / name, pickled(tmp_path / "executed"))

    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(torch, "load", reached)
    monkeypatch.setattr(torch.export, "load", reached)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", reached)
    with pytest.raises(InputError, match=f"exported file .*{name} ") as error:
        Exported(tmp_path / name)
    assert ("is a program" in str(error.value)) == (name == "bad.pt2")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("how", ["sample inputs", "older layout"])
def test_consent_is_not_taken_lightly(how: str, program: Path, tmp_path: Path) -> None:
    """This is what the sentence warns of: with the consent, code of the file's maker does run."""
    crafted(how, program, tmp_path / "bad.pt2", pickled(tmp_path / "executed"))
    for consent in (1, "yes", None):
        with pytest.raises(InputError, match="is a program"):
            Exported(tmp_path / "bad.pt2", trust_code=consent)  # type: ignore[arg-type]
    assert not (tmp_path / "executed").exists()
    assert Exported(program, trust_code=True).about.classes == MODEL.classes


def test_class_names_lead_nowhere(tmp_path: Path) -> None:
    names = ("/../../up", "TV/Monitor")
    model = ConditionalDETR.new(MODEL.config, Classes(names, (1, 2)))
    Checkpoint(tmp_path / "a.safetensors", model.config, model.classes, model.network.state_dict()).save()
    out = tmp_path / "deep" / "out"
    arguments = ["--checkpoint", str(tmp_path / "a.safetensors"), "--output-dir", str(out), "--device", "cpu"]
    assert attention_maps.main([*arguments, "--detections", "2"]) == 0
    assert len(list(out.iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "deep"]


def test_cut_downloads_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in MODEL.network.state_dict().items()}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    served = [data[:1000], data]
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("cond_detr.weights.cache.fetch", lambda url, file, name, **_: file.write(served.pop(0)))
    url = "https://example.org/model.safetensors"
    model = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
    with pytest.raises(InputError, match=f"downloaded from {url} cannot be read: it is damaged"):
        model.load_weights(url)
    assert model.load_weights(url).missing == []
    assert open_source(url)[0].read_bytes() == data


def test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(pixels.astype(np.uint16) * 256 + 77).save(tmp_path / "16.png")
    assert np.array_equal(open_image(tmp_path / "8.png"), open_image(tmp_path / "16.png"))
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "32.tif")
    with pytest.raises(InputError, match=r"32.tif cannot be read: its pixels have 32 bits \(mode F\)"):
        open_image(tmp_path / "32.tif")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 0x0112, 3, 9000, 9999) + b"\xff"
    Image.fromarray(pixels).save(tmp_path / "exif.jpg", exif=exif)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "exif.jpg").read_bytes()[:-300])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(InputError, match="image cannot be read"):
        open_image(image)


def test_a_very_wide_image_does_not_become_huge() -> None:
    image = Image.new("RGB", (20000, 8))
    with pytest.raises(InputError, match="image of 20000x8 pixels is too narrow: the network gets 1x1"):
        MODEL.predict(image, threshold=0)
    found = MODEL.predict(Image.new("RGB", (64, 64)), threshold=0)
    assert draw_detections(image, found).size == (20000, 8)
    assert draw_detections(Image.new("RGB", (640, 8)), found).size == (1280, 16)


def test_a_damaged_photo_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint(tmp_path / "a.pt", MODEL.config, MODEL.classes, MODEL.network.state_dict()).save()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    real = Image.open

    def damaged(path: Any, **options: Any) -> Image.Image:
        if str(path).endswith("2.png"):
            raise struct.error("unpack requires a buffer of 4 bytes")
        return real(path, **options)

    monkeypatch.setattr(Image, "open", damaged)
    photos = [str(tmp_path / name) for name in ("1.png", "2.png", "3.png")]
    out = tmp_path / "out"
    assert predict.main([*photos, "--checkpoint", str(tmp_path / "a.pt"), "--output-dir", str(out)]) == 2
    assert [Path(entry["file"]).name for entry in json.loads((out / "predictions.json").read_text())] == [
        "1.png",
        "3.png",
    ]


def test_other_photos_in_the_same_folder_stay(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "a.pt", MODEL.config, MODEL.classes, MODEL.network.state_dict()).save()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    photo = str(tmp_path / "a.jpg")
    assert predict.main([photo, "--checkpoint", str(tmp_path / "a.pt"), "--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "a.png").read_bytes() == before
    assert (tmp_path / "a-2.png").exists()


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoint(tmp_path / "a.pt", MODEL.config, MODEL.classes, MODEL.network.state_dict()).save()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "out/predictions.json").mkdir(parents=True)
    arguments = [str(tmp_path / "a.jpg"), "--checkpoint", str(tmp_path / "a.pt"), "--output-dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        cli.run(predict.main, arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    name = tmp_path / "out/predictions.json"
    assert error == f"error: {name} is not of an earlier run of predict; choose another --output-dir"


def annotations(**changes: Any) -> dict[str, Any]:
    good = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    return {**good, **changes}


def image(**changes: Any) -> dict[str, Any]:
    return annotations(images=[{**annotations()["images"][0], **changes}])


def box(**changes: Any) -> dict[str, Any]:
    return annotations(annotations=[{**annotations()["annotations"][0], **changes}])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (json.dumps(image(file_name="a\0.png")), "image 1 has a file name that is not one line of text"),
        (json.dumps(image(file_name="\udce9.png")), "image 1 has a file name that is not one line of text"),
        (json.dumps(image(file_name="a" * 5000)), "image 1 has a file name that is not one line of text"),
        (json.dumps(image(width=10**400)), "image 1 must have a width and a height of 1 to 1000000 pixels"),
        (json.dumps(image(width=0)), "image 1 must have a width and a height of 1 to 1000000 pixels"),
        (json.dumps(box(bbox=None)), "annotation 1 (a.png) has no box: bbox is None, and there is no segmentation"),
        (json.dumps(box(bbox={})), "annotation 1 (a.png) has no box: bbox is {}"),
        (json.dumps(box(iscrowd="0")), "annotation 1 (a.png) has iscrowd '0'; expected 0 or 1"),
        (json.dumps(annotations(categories=[{"id": 1, "name": "N/A"}])), "category name 'N/A' stands for outputs"),
        (
            json.dumps(annotations(categories=[{"id": 1, "name": "a\nb"}])),
            "must be a line of text of at most 200 characters, got 'a\\nb'",
        ),
        ("[" * 100000, "is not valid JSON"),
        ('{"images": ' + "1" * 5000 + "}", "is not valid JSON"),
    ],
)
def test_annotations(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "a.json")
    assert sentence in str(error.value)
    assert "a.json" in str(error.value)


def test_all_problems_are_told(dataset_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the first alone."""
    file = dataset_dir / "annotations/instances_train.json"
    raw = json.loads(file.read_text())
    size = raw["images"][0]["width"]
    first = raw["annotations"][0]
    raw["annotations"] += [
        {**first, "id": 901, "bbox": [1, 1, -5, 5]},
        {**first, "id": 902, "category_id": 77},
        {**first, "id": 903, "image_id": 7777},
        {**first, "id": 904, "bbox": [5, 5, 10 * size, 5]},
        {**first, "id": 905, "bbox": [5, 5, 0.5, 5]},
    ]
    file.write_text(json.dumps(raw))
    (dataset_dir / "annotations/instances_val.json").write_text("[")
    assert check_data.main([str(dataset_dir)]) == 2
    printed = capsys.readouterr().out
    for sentence in ("annotation 901", "annotation 902", "annotation 903", "instances_val.json is not valid JSON"):
        assert printed.count(sentence) == 1
    assert "1 boxes reach more than a pixel out of their image" in printed
    assert "1 boxes are narrower than a pixel" in printed


def test_warnings_about_tags_are_not_shown(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Whether images are rotated is read before they are loaded, and Python's warnings name no image."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 2, 0x0112, 3, 9000, 9999)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    record = ImageRecord(1, "a.jpg", (64, 64), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert exif_convention(FolderLoader(tmp_path), [record], "auto") == (True, "")
    assert not recwarn.list


def test_names_of_settings_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"model": {**dict.fromkeys(map(str, range(500)), 1), "x" * 10**6: 1}}))
    with pytest.raises(InputError, match=r"unknown settings for ModelConfig: .* and 493 more; known are") as error:
        read_config(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"model": {"a\nb": 1}}))
    with pytest.raises(InputError, match=r"ModelConfig: a\\nb; known are"):
        read_config(tmp_path / "b.json")
    assert len(str(error.value)) < 1000


def test_archives_that_lead_to_before_their_beginning(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    offset = data.rindex(b"PK\x06\x06") + 48  # of the directory, in the record behind it
    (tmp_path / "a.pt").write_bytes(data[:offset] + struct.pack("<Q", 2**30) + data[offset + 8 :])
    with pytest.raises(InputError, match=r"a\.pt cannot be read: it is damaged"):
        Detector.from_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("names", [{"0": []}, "text", {"0": {}}, {"1": "a"}])
def test_names_of_classes_that_are_none(names: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    with pytest.raises(InputError, match=r"config\.json: id2label must name the numbers") as error:
        classes_beside(tmp_path / "model.safetensors")
    assert not re.search("unhashable|indices", str(error.value))


def test_names_of_tensors_are_not_trusted(tmp_path: Path) -> None:
    odd = {"a\nb" + "c" * 1000: BIAS}
    torch.save(content(model=state(**odd)), tmp_path / "a.pt")
    torch.save(content(model={**state(), "a\nb": BIAS * float("nan")}), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match=rf"{name}.* a\\nb") as error:
            Detector.from_checkpoint(tmp_path / name)
        assert len(str(error.value)) < 1000
    model = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)
    assert "(a\\nbc" in str(model.load_weights(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["d_model", "ffn_dim", "num_queries"])
def test_sizes_that_overflow(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"model": {name: 2**62}}))
    with pytest.raises(InputError, match=rf"a\.json: `{name}` must be a whole number of at least 1 and below"):
        read_config(tmp_path / "a.json")

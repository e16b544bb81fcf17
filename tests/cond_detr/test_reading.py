"""Files of weights: what a user named stays, and no tensor is used before it is known to be what it claims."""

import argparse
import collections
import contextlib
import copy
import os
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cond_detr import ConditionalDETR, InputError, cli
from cond_detr.convert import __main__ as convert
from cond_detr.train import __main__ as train
from cond_detr.train.optim import make_optimizer, restore
from cond_detr.weights import reading, storages, torch_file
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.foreign import classes_beside
from cond_detr.weights.reading import open_source, read
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
OLD = Path(__file__).parents[1] / "data"


# What a user named


def damaged(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 something else")


def not_ours(path: Path) -> None:
    path.write_text("notes that took a day to write")


def newer(path: Path) -> None:
    torch.save({"format": "cond_detr/9", "model": {}}, path)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "kept").write_text("")


def link(path: Path) -> None:
    not_ours(path.with_name("target"))
    path.symlink_to(path.with_name("target"))


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def read_only(path: Path) -> None:
    not_ours(path)
    path.chmod(0o400)


KINDS = [damaged, not_ours, newer, folder, link, link_to_nothing, read_only]
SPELLINGS = ["{}/./x.pt", "{}//x.pt", "{}/../{name}/x.pt", "{}/x.pt", "./x.pt", "x.pt"]


def everything(path: Path) -> dict[str, Any]:
    """What is below a folder."""

    def what(p: Path) -> Any:
        if p.is_symlink():
            return p.readlink()
        return p.read_bytes() if p.is_file() else None

    return {str(p): what(p) for p in path.rglob("*")}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_cannot_be_read_stays(
    make: Callable[[Path], None], spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.pt")
    before = everything(tmp_path)
    source = spelling.format(tmp_path, name=tmp_path.name)
    with pytest.raises(InputError, match=r"x\.pt "):
        open_source(source)
    assert everything(tmp_path) == before


def test_a_passing_error_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(OLD / "best-0.1.0.pt", tmp_path / "x.pt")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(torch_file, "load", fails)
        with pytest.raises(InputError, match="Input/output error"):
            open_source(f"{tmp_path}/./x.pt")
    assert open_source(f"{tmp_path}/./x.pt")[1]["format"] == "cond_detr/1"


def test_the_command_leaves_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    not_ours(tmp_path / "other.pt")
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, ["--weights", "./other.pt", "--device", "cpu"])
    assert stop.value.code == 2
    assert "other.pt cannot be read" in capsys.readouterr().err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("source", ["a" * 300, "https://[x/y.pt", "x\0.pt"])
def test_names_that_no_file_has(source: str) -> None:
    with pytest.raises(InputError):
        open_source(source)


def test_earlier_downloads_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be hit by a passing error as well, or be of a version that another installation reads."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    content = (OLD / "best-0.1.0.pt").read_bytes()
    monkeypatch.setattr("cond_detr.weights.cache.fetch", lambda url, file, name, **_: file.write(content))
    path, _ = open_source("https://example.org/a.pt")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    newer(path)
    with pytest.raises(InputError, match=rf"{path}, downloaded from https://example.org/a.pt before, has format"):
        open_source("https://example.org/a.pt")
    assert path.exists()


# Tensors


ODD: dict[str, Any] = {
    "expanded": torch.ones(1).expand(96, 5),
    "windows": torch.arange(10.0).unfold(0, 5, 1),
    "sparse": torch.eye(3).to_sparse(),
    "on no device": torch.empty(3, device="meta"),
    "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


def outcome(path: Path) -> tuple[bool, Any]:
    """Whether a file is refused with a sentence, and else what it holds."""
    with contextlib.suppress(InputError):
        return False, read(path)
    return True, None


@pytest.mark.parametrize("place", ["alone", "in a list", "in the optimizer", "in a namespace"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_never_come_out(kind: str, place: str, tmp_path: Path) -> None:
    tensor = ODD[kind]
    content = {
        "alone": tensor,
        "in a list": [1, [tensor]],
        "in the optimizer": {"optimizer": {"state": {0: {"exp_avg": tensor}}}},
        "in a namespace": {"args": argparse.Namespace(tensor=tensor)},
    }[place]
    torch.save(content, tmp_path / "x.pt")
    refused, found = outcome(tmp_path / "x.pt")
    assert refused or ("<'a" in repr(found) and "tensor(" not in repr(found))


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_no_weights(kind: str, tmp_path: Path) -> None:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    content["model"]["class_head.weight"] = ODD[kind]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt "):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")


HONEST: dict[str, Any] = {
    "types": {str(d): torch.ones(3).to(d) for d in storages.DTYPES.values()},
    "views": {"t": torch.arange(6.0).reshape(2, 3).T, "part": torch.arange(9.0)[2:7:2], "scalar": torch.tensor(3.0)},
    "tied": (lambda t: {"a": t, "b": t, "c": t[1:]})(torch.arange(4.0)),
    "empty": {"a": torch.empty(0, 3), "b": torch.empty(2, 0).T},
    "parameters": collections.OrderedDict(w=torch.nn.Parameter(torch.ones(2)), b=torch.nn.Parameter(torch.zeros(1))),
    "state of a module": torch.nn.BatchNorm2d(3).state_dict(),
    "state of an optimizer": {
        "state": {0: {"step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}],
    },
    "values": {"text": "ä", "list": [1, -2, 2**40, 1.5, None, True], "tuple": (1, ("a",)), "bytes": b"\x00\xff", 3: {}},
}


@pytest.mark.parametrize("older_layout", [False, True], ids=["archive", "older layout"])
@pytest.mark.parametrize("name", HONEST)
def test_reads_what_torch_reads(name: str, older_layout: bool, tmp_path: Path) -> None:
    torch.save(HONEST[name], tmp_path / "x.pt", _use_new_zipfile_serialization=not older_layout)
    want, got = torch.load(tmp_path / "x.pt", weights_only=True), torch_file.load(tmp_path / "x.pt")
    assert repr(got) == repr(dict(want)).replace("Parameter containing:\n", "").replace(", requires_grad=True", "")
    for key, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[key], value)
            assert got[key].dtype == value.dtype


def test_what_lies_beside_does_not_matter_and_does_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/executed",)

    content = {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1, folder=tmp_path, runs=Runs())}
    torch.save(content, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    assert torch.equal(found["model"]["a"], torch.ones(2))
    assert found["args"]["lr"] == 1
    assert isinstance(found["args"]["folder"], storages.Unknown)
    assert repr(found["args"]["runs"]) == "<'an object of posix.system'>"
    assert not (tmp_path / "executed").exists()


# What pickles can say and torch.save never does: protocol 2, then opcodes
HOSTILE = {
    "set_ on a tensor": b"ctorch\nTensor\n)R(K\x00K\x00tb.",
    "a hash that takes for ever": b"}" + b"N\x85" + b"2\x86" * 60 + b"K\x01s.",
    "a number of a thousand bits": b"\x8a\x80" + b"\x7f" * 128 + b".",
    "a call of an attribute": b"c_codecs\nencode\nX\x03\x00\x00\x00aaaX\x09\x00\x00\x00hex_codec\x86R.",
    "an object of an instruction": b"(ios\nsystem\n.",
    "a set": b"\x8f(K\x01\x90.",
    "a memory slot far away": b"Nr\xff\xff\xff\x7f.",
    "text longer than the file": b"\x8d\xff\xff\xff\xff\xff\x00\x00\x00.",
    "nothing to stop at": b"N",
    "an empty stack": b"R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + HOSTILE[name])
    refused, found = outcome(tmp_path / "x.pt")
    assert refused or found in (None, {}) or isinstance(found, storages.Unknown)


class Claims:
    """Pickles as a tensor that is larger than its storage."""

    def __init__(self, shape: tuple[int, int], strides: tuple[int, int] | None = None, offset: int = 0) -> None:
        self.arguments = offset, shape, strides or (shape[1], 1), False, {}

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (torch.ones(16).storage(), *self.arguments)


@pytest.mark.parametrize("older_layout", [False, True])
@pytest.mark.parametrize("shape", [(4096, 4096), (2**20, 2**20), (2**31, 2**31)])
def test_tensors_larger_than_their_storage(shape: tuple[int, int], older_layout: bool, tmp_path: Path) -> None:
    content = {"model": {"a": Claims(shape)}}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not older_layout)
    assert (tmp_path / "x.pt").stat().st_size < 4096
    with pytest.raises(InputError, match=r"x\.pt cannot be read: "):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("older_layout", [False, True])
@pytest.mark.parametrize(
    "claims",
    [Claims((4, 4), (-4, 1), 12), Claims((4, 4), (4, -1), 3), Claims((2, 2), offset=15), Claims((2, 2), offset=-1)],
)
def test_strides_and_offsets_that_lead_out(claims: Claims, older_layout: bool, tmp_path: Path) -> None:
    torch.save({"model": {"a": claims}}, tmp_path / "x.pt", _use_new_zipfile_serialization=not older_layout)
    with pytest.raises(InputError, match=r"x\.pt cannot be read: "):
        read(tmp_path / "x.pt")


def test_honest_views_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "part": base[1:3, ::2],
        "last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.ones(1, 0).expand(7, 0),
        "one": torch.ones(1, 1).expand(1, 1),
        "half": base.half(),
        "tied": base,
    }
    torch.save(tensors, tmp_path / "x.pt")
    found = reading.checked_state(read(tmp_path / "x.pt"))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.float())
        assert found[name].is_contiguous()
        assert found[name].dtype == torch.float32


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    content: list[Any] = [torch.ones(2)]
    content.append(content)
    torch.save(content, tmp_path / "x.pt")
    assert torch.equal(read(tmp_path / "x.pt")[0], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights(dtype: torch.dtype) -> None:
    value = torch.full((2,), 1e300, dtype=torch.float64).to(dtype)
    with pytest.raises(InputError, match="tensor a "):
        reading.checked_state({"a": value})


def test_tied_tensors_convert(tmp_path: Path) -> None:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    content["model"]["backbone.bn1.weight"] = content["model"]["backbone.bn1.bias"]
    torch.save(content, tmp_path / "x.pt")
    assert convert.main([str(tmp_path / "x.pt"), str(tmp_path / "x.safetensors")]) == 0
    want, got = (Checkpoint.load(tmp_path / name).model for name in ("x.pt", "x.safetensors"))
    assert all(torch.equal(want[name], got[name]) for name in want)


# Attributes that a file gives its tensors and dictionaries


class WithAttributes:
    """Pickles as an ordered dictionary with attributes, which the restricted unpickler sets."""

    def __init__(self, content: dict[str, Any], attributes: dict[str, Any]) -> None:
        self.content = content
        self.attributes = attributes

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), self.attributes, None, iter(self.content.items())


@pytest.mark.parametrize("name", ["isfinite", "clone", "float", "contiguous", "numel", "dim"])
@pytest.mark.parametrize("instead", [torch.Tensor, torch.Size, 5], ids=str)
def test_attributes_do_not_stand_in_for_methods(name: str, instead: Any, tmp_path: Path) -> None:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    for tensor in content["model"].values():
        setattr(tensor, name, instead)
    torch.save(content, tmp_path / "honest.pt")
    assert ConditionalDETR.from_checkpoint(tmp_path / "honest.pt").classes.names
    content["model"]["class_head.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt .*class_head\.weight holds numbers that are not finite"):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "attributes", [{"items": collections.OrderedDict}, {"get": 5}, {"keys": torch.Size}, {}], ids=str
)
def test_attributes_do_not_hide_what_is_in_a_dictionary(attributes: dict[str, Any], tmp_path: Path) -> None:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    shape = content["model"]["class_head.weight"].shape
    content["model"]["class_head.weight"] = torch.ones(1).expand(shape)
    torch.save(WithAttributes(content, attributes), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt .* got a tensor whose elements share memory as 'class_head.weight'"):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")


def test_negated_views_are_no_weights(tmp_path: Path) -> None:
    """Their sign is no part of the numbers in the file."""
    content = {"model": {"query_embed.weight": torch._neg_view(torch.ones(2, 2))}}
    torch.save(content, tmp_path / "x.pt")
    assert isinstance(read(tmp_path / "x.pt")["model"]["query_embed.weight"], storages.Unknown)
    for opened in (ConditionalDETR.from_checkpoint, ConditionalDETR.from_preset("shapes", 2).load_weights):
        with pytest.raises(InputError, match=r"query_embed\.weight is a tensor that is conjugated or negated"):
            opened(tmp_path / "x.pt")  # type: ignore[operator]


def test_two_directories_in_an_archive(tmp_path: Path) -> None:
    """Python's reader takes the one that ends where the end begins, torch's the one at the recorded offset."""
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in good.infolist():
            packed.writestr(entry.filename, good.read(entry), zipfile.ZIP_DEFLATED)
    data = (tmp_path / "packed.pt").read_bytes()
    end = data.rfind(b"PK\5\6")
    *_, size, offset, _ = struct.unpack("<4s4H2LH", data[end:])
    decoy = bytearray(data[offset : offset + size])
    at = 0
    while at < len(decoy):
        lengths = struct.unpack("<3H", decoy[at + 28 : at + 34])
        decoy[at + 10 : at + 12] = b"\0\0"
        at += 46 + sum(lengths)
    (tmp_path / "x.pt").write_bytes(data[: offset + size] + bytes(decoy) + data[end:])
    with pytest.raises(InputError, match=r"x\.pt cannot be read"):
        read(tmp_path / "x.pt")


PROGRESS = torch.load(OLD / "last-0.1.0.pt", weights_only=True)["progress"]
BAD_PROGRESS: dict[str, Any] = {
    "a list": [1],
    "nothing": {},
    "epoch missing": {name: value for name, value in PROGRESS.items() if name != "epoch"},
    "one more": {**PROGRESS, "x": 1},
    "epoch as text": {**PROGRESS, "epoch": "1"},
    "epoch as a tensor": {**PROGRESS, "epoch": torch.tensor(1)},
    "epoch as a bool": {**PROGRESS, "epoch": True},
    "step negative": {**PROGRESS, "step": -1},
    "step beyond the epoch": {**PROGRESS, "step": 10**6},
    "seconds as text": {**PROGRESS, "seconds": "x"},
    "best AP NaN": {**PROGRESS, "best_ap": float("nan")},
    "too few losses": {**PROGRESS, "loss_sums": [0.0]},
    "history as a number": {**PROGRESS, "history": 5},
    "history too short": {**PROGRESS, "history": []},
    "history without losses": {**PROGRESS, "history": [{"epoch": 1}]},
}


@pytest.mark.parametrize("name", BAD_PROGRESS)
def test_progress_is_checked_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = torch.load(OLD / "last-0.1.0.pt", weights_only=True)
    torch.save({**saved, "progress": BAD_PROGRESS[name]}, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    data = write_dataset(tmp_path / "data")
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, ["--resume", str(tmp_path / "last.pt"), "--dataset-dir", str(data), "--device", "cpu"])
    assert stop.value.code == 2
    assert "last.pt" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "last.pt").read_bytes() == before


# The optimiser's state

MODEL = ConditionalDETR.from_preset("shapes", 2, decoder_layers=1, num_queries=5)


def optimizer_after_a_step() -> torch.optim.AdamW:
    optimizer = make_optimizer(MODEL.network, MODEL.config.train)
    for parameter in MODEL.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


GOOD = copy.deepcopy(optimizer_after_a_step().state_dict())
SHAPE = GOOD["state"][0]["exp_avg"].shape


def changed(**values: Any) -> dict[str, Any]:
    state = {**GOOD["state"], 0: {**GOOD["state"][0], **values}}
    return {**GOOD, "state": state}


BAD_STATES: dict[str, Any] = {
    "no dictionary": [],
    "nothing": {},
    "state as a list": {"state": [GOOD["state"][0]]},
    "no moments": {"state": {}, "param_groups": GOOD["param_groups"]},
    "one missing": {**GOOD, "state": {i: s for i, s in GOOD["state"].items() if i != 3}},
    "one more": {**GOOD, "state": {**GOOD["state"], 100000: GOOD["state"][0]}},
    "named otherwise": {**GOOD, "state": {str(i): s for i, s in GOOD["state"].items()}},
    "entry as a list": {**GOOD, "state": {**GOOD["state"], 0: [1]}},
    "entry without step": {**GOOD, "state": {**GOOD["state"], 0: {"exp_avg": 1, "exp_avg_sq": 1}}},
    "entry with more": changed(max_exp_avg_sq=torch.zeros(SHAPE)),
    "too small": changed(exp_avg=torch.zeros(1)),
    "no dimensions": changed(exp_avg_sq=torch.tensor(1.0)),
    "transposed": changed(exp_avg=torch.zeros(SHAPE[::-1])) if SHAPE[::-1] != SHAPE else changed(exp_avg=None),
    "doubles": changed(exp_avg=torch.zeros(SHAPE, dtype=torch.float64)),
    "halves": changed(exp_avg_sq=torch.zeros(SHAPE, dtype=torch.float16)),
    "whole numbers": changed(exp_avg=torch.zeros(SHAPE, dtype=torch.int64)),
    "not a number": changed(exp_avg=torch.full(SHAPE, float("nan"))),
    "infinite": changed(exp_avg_sq=torch.full(SHAPE, float("inf"))),
    "negative": changed(exp_avg_sq=torch.full(SHAPE, -1.0)),
    "text": changed(exp_avg="0"),
    "step as a number": changed(step=1),
    "step of many": changed(step=torch.ones(2)),
    "step NaN": changed(step=torch.tensor(float("nan"))),
    "another step": changed(step=torch.tensor(7.0)),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_the_optimizers_state_is_checked(name: str) -> None:
    optimizer = make_optimizer(MODEL.network, MODEL.config.train)
    with pytest.raises(InputError, match="the optimizer's "):
        restore(optimizer, BAD_STATES[name], steps=1)
    assert not optimizer.state


def test_moments_get_memory_of_their_own() -> None:
    """The fused kernels write as far as the parameters are long."""
    shared = torch.full(SHAPE, 1e-4)
    saved = changed(exp_avg=torch.full((1,), 0.01).expand(SHAPE), exp_avg_sq=shared)
    optimizer = make_optimizer(MODEL.network, MODEL.config.train)
    restore(optimizer, saved, steps=1)
    parameter = optimizer.param_groups[0]["params"][0]
    state = optimizer.state[parameter]
    for name in ("exp_avg", "exp_avg_sq"):
        assert state[name].untyped_storage().nbytes() == parameter.numel() * 4
        assert state[name].stride() == parameter.stride()
        assert torch.equal(state[name], saved["state"][0][name])
    assert state["exp_avg_sq"].data_ptr() != shared.data_ptr()


def test_runs_of_more_steps_than_float32_counts() -> None:
    saved = copy.deepcopy(GOOD)
    for moments in saved["state"].values():
        moments["step"] = torch.tensor(2.0**24)
    restore(make_optimizer(MODEL.network, MODEL.config.train), saved, steps=2**24 + 5)


def test_rates_are_the_settings() -> None:
    saved = copy.deepcopy(GOOD)
    for group in saved["param_groups"]:
        group |= {"lr": 1e30, "betas": (2.0, float("nan")), "maximize": True, "weight_decay": "x"}
    optimizer = make_optimizer(MODEL.network, MODEL.config.train)
    before = [{**group, "params": None} for group in optimizer.param_groups]
    restore(optimizer, saved, steps=1)
    assert [{**group, "params": None} for group in optimizer.param_groups] == before


@pytest.mark.parametrize("damage", ["expanded", "NaN", "missing average"])
def test_resume_says_which_file(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = torch.load(OLD / "last-0.1.0.pt", weights_only=True)
    moments = saved["optimizer"]["state"][0]
    if damage == "expanded":
        moments["exp_avg"] = torch.ones(1).expand(moments["exp_avg"].shape)
    elif damage == "NaN":
        moments["exp_avg"] = moments["exp_avg"] * float("nan")
    else:
        saved["config"]["train"]["ema"] = 0.9
    torch.save(saved, tmp_path / "last.pt")
    data = write_dataset(tmp_path / "data")
    arguments = ["--resume", str(tmp_path / "last.pt"), "--dataset-dir", str(data), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "last.pt" in error


# Files of 0.1.0


def test_files_of_the_first_release_open() -> None:
    model = ConditionalDETR.from_checkpoint(OLD / "best-0.1.0.pt")
    assert model.classes == Checkpoint.load(OLD / "last-0.1.0.pt").classes
    assert model.load_weights(OLD / "last-0.1.0.pt").missing == []


def test_a_run_of_the_first_release_goes_on(tmp_path: Path) -> None:
    shutil.copy(OLD / "last-0.1.0.pt", tmp_path / "last.pt")
    data = write_dataset(tmp_path / "data")
    arguments = ["--resume", str(tmp_path / "last.pt"), "--dataset-dir", str(data), "--device", "cpu"]
    assert train.main(arguments) == 0
    assert Checkpoint.load(tmp_path / "last.pt").progress.epoch == 2  # type: ignore[union-attr]


# Small files that ask for much: protocol 2, then opcodes

ORDERED = b"ccollections\nOrderedDict\n"
ENCODE = b"c_codecs\nencode\n"
# Sixty tuples, each of the one before and that one again: a hash or a repr would take for ever
DOUBLED = b"N\x85" + b"2\x86" * 60


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


DEMANDING = {
    "millions of objects": b"(" + b"}" * 3_000_000 + b"t.",
    "copies of a dictionary": b"}(" + b"".join(text(f"{i:4}") + b"N" for i in range(5000)) + b"uq\x01("
    + (ORDERED + b"h\x01\x85R") * 5000 + b"t.",
    "copies of bytes": text("x" * 100_000) + b"q\x01" + text("latin1") + b"q\x02("
    + (ENCODE + b"h\x01h\x02\x86R") * 5000 + b"t.",
    "many arguments": b"(" + b"N" * 50_000 + b"tq\x01(" + (b"ctorch._utils\n_rebuild_parameter\nh\x01R") * 5000 + b"t.",
    "a long name again and again": b"(" + (b"c" + b"x" * 50_000 + b"\ny\n") * 100 + b"t.",
    "an encoding without end": ENCODE + text("a") + DOUBLED + b"\x86R.",
}  # fmt: skip


@pytest.mark.parametrize("name", DEMANDING)
def test_small_files_do_not_keep_the_reader_busy(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + DEMANDING[name])
    before, started = peak_memory(), time.process_time()
    outcome(tmp_path / "x.pt")
    assert time.process_time() - started < 20
    assert peak_memory() - before < 1 << 30


def peak_memory() -> int:
    """Of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_keys_of_the_older_format_are_text(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pt").read_bytes()
    assert content.endswith(b"\x80\x02]q\x00.")
    (tmp_path / "x.pt").write_bytes(content.removesuffix(b"]q\x00.") + b"](" + DOUBLED + b"e.")
    with pytest.raises(InputError, match="do not use the parts that it lists"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "older"])
def test_every_protocol_is_read(archive: bool, protocol: int, tmp_path: Path) -> None:
    beside = {"set": {1}, "frozen": frozenset({2}), (1, 2): 3, None: 4, "bytes": bytearray(b"ab"), "number": 2**200}
    content = {"model": {"a": torch.arange(3.0)}, "beside": beside, torch.float32: 5, "module": torch.nn.Linear(1, 1)}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    assert torch.equal(read(tmp_path / "x.pt")["model"]["a"], torch.arange(3.0))


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    with torch.utils.serialization.config.patch("save.compute_crc32", False):
        torch.save({"a": torch.arange(3.0)}, tmp_path / "x.pt")
    assert torch.equal(read(tmp_path / "x.pt")["a"], torch.arange(3.0))


def checkpoint_with(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> Path:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.pt")
    return tmp_path / "x.pt"


NESTED: Any = None
for _ in range(60):
    NESTED = [NESTED, NESTED]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["config"]["model"].update(d_model=NESTED), "`d_model` must be a whole number .*, got a list$"),
        (lambda c: c["config"]["model"].update(d_model=torch.zeros([6] * 8)), "`d_model` must be .*, got a Tensor$"),
        (
            lambda c: c["config"]["model"].update(decoder_layers=8000),
            "`decoder_layers` must .* below 1000, got 8000",
        ),
        (lambda c: c["config"]["data"].update(image_size=32000), "`image_size` must be .* below 8192, got 32000"),
        (lambda c: c["classes"].update(names=torch.empty(2**40, 0)), "names of classes must be a list"),
        (lambda c: c["classes"].update(names=["x" * 10**6] * 6), "a line of text of at most 200 characters, got 'xxx"),
        (lambda c: c["classes"].update(names=["\u202e\u2028"] * 6), r"a line of text .*, got '\\u202e\\u2028'"),
        (lambda c: c["model"].update(a=torch.zeros([1] * 40)), "got a tensor of 40 axes as 'a'"),
        (lambda c: c["model"]["backbone.bn1.running_var"].fill_(-1), "running_var holds variances below 0"),
    ],
)
def test_what_no_checkpoint_holds(change: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        ConditionalDETR.from_checkpoint(checkpoint_with(change, tmp_path))
    assert len(str(error.value)) < 1000


def test_one_tensor_of_many_names_stays_one(tmp_path: Path) -> None:
    content = torch.load(OLD / "best-0.1.0.pt", weights_only=True)
    tensor = torch.zeros(500_000, dtype=torch.half)
    content["model"] |= {f"alias{i}": tensor for i in range(2000)}
    torch.save(content, tmp_path / "x.pt")
    before = peak_memory()
    with pytest.raises(InputError, match="2000 tensors differ"):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")
    assert peak_memory() - before < 1 << 29


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    state = {"query_embed.weight": torch.zeros(3, 4), "class_embed.weight": torch.zeros(2, 4)}
    torch.save({**state, "class_head.weight": torch.ones(2, 4)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt cannot be used: two of its tensors stand for class_head\.weight"):
        ConditionalDETR.from_checkpoint(tmp_path / "x.pt")


def test_what_is_converted_fits_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint_with(lambda c: c.update(model={"query_embed.weight": torch.zeros(3)}), tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.run(convert.main, [str(path), str(tmp_path / "y.safetensors")])
    assert stop.value.code == 2
    assert not (tmp_path / "y.safetensors").exists()


def test_a_pipe_beside_a_file_is_no_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    os.mkfifo(tmp_path / "config.json")
    assert classes_beside(tmp_path / "x.pt") is None


@pytest.mark.parametrize("url", ["http://localhost:1/é.pt", "https://a..b/x.pt", "http://localhost:1/x\0.pt"])
def test_addresses_that_cannot_be(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be downloaded|a\.\.b/x\.pt is no address: .*label empty"):
        open_source(url)


def test_predictions_that_are_not_finite(tmp_path: Path) -> None:
    def overflow(content: dict[str, Any]) -> None:
        for name, tensor in content["model"].items():
            if name.startswith("box_head"):
                tensor.fill_(3e38).view(-1)[::2].neg_()

    model = ConditionalDETR.from_checkpoint(checkpoint_with(overflow, tmp_path))
    with pytest.raises(InputError, match="the network's predictions are not finite"):
        model.predict(Image.new("RGB", (64, 64)), 0.0)


@pytest.mark.parametrize(
    ("first", "second"), [(0.01, 0.0), (0.01, -0.0), (3e38, 0.0), (0.0, 3e38), (1e-3, 1e-10)], ids=str
)
def test_moments_of_no_gradients(first: float, second: float) -> None:
    saved = changed(exp_avg=torch.full(SHAPE, first), exp_avg_sq=torch.full(SHAPE, second))
    with pytest.raises(InputError, match=r"the optimizer's moments .* are not of the same gradients"):
        restore(make_optimizer(MODEL.network, MODEL.config.train), saved, steps=1, clip_norm=0.1)


def test_a_copy_of_a_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run goes on beside its last.pt; beside another file it would replace what is somebody else's."""
    shutil.copy(OLD / "last-0.1.0.pt", tmp_path / "backup.pt")
    (tmp_path / "last.pt").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, ["--resume", str(tmp_path / "backup.pt"), "--device", "cpu"])
    assert stop.value.code == 2
    assert "backup.pt is not a run's last.pt" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_what_cannot_be_resumed_leaves_the_folder(tmp_path: Path) -> None:
    content = torch.load(OLD / "last-0.1.0.pt", weights_only=True)
    content["optimizer"]["state"][0]["exp_avg"].fill_(3e38)
    torch.save(content, tmp_path / "last.pt")
    (tmp_path / "config.json").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(SystemExit):
        cli.run(train.main, ["--resume", str(tmp_path / "last.pt"), "--device", "cpu"])
    assert everything(tmp_path) == before

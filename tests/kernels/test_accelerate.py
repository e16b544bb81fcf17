"""Putting our losses and attention into the transformers package's detectors, and taking them out again."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
)
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.models.conditional_detr import modeling_conditional_detr as modeling

from cond_detr_kernels.transformers import accelerate, known, places, restore
from cond_detr_kernels.transformers.losses import LEFT, ORIGINAL, AcceleratedLoss, criterion_of
from cond_detr_kernels.transformers.places import ATTENTION, fused
from tests.kernels.transformers_inputs import labels

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
LOSS = "ConditionalDetrForObjectDetection"
TINY = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 20,
    "auxiliary_loss": True,
    "dropout": 0.0,
    "num_labels": 10,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    restore()
    for kind in (ConditionalDetrForObjectDetection, DetrForObjectDetection):
        restore(kind)


def backbone() -> Any:
    return ResNetConfig(embedding_size=16, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 16, 32], out_features=["stage4"])


def conditional_detr(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = ConditionalDetrConfig(**{**TINY, "backbone_config": backbone(), **settings})
    return ConditionalDetrForObjectDetection(config).train()


def detr() -> Any:
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(**TINY, backbone_config=backbone())).train()
    # else all queries predict the same, and rounding decides on the matching
    model.model.query_position_embeddings.weight.data *= 10
    return model


def batch(device: torch.device | None = None) -> dict[str, Any]:
    torch.manual_seed(1)
    mask = torch.ones(2, 64, 96, dtype=torch.int64)
    mask[1, :, 64:] = 0
    given = {"pixel_values": torch.randn(2, 3, 64, 96), "pixel_mask": mask}
    objects = labels([3, 1])
    if device is not None:
        given = {name: value.to(device) for name, value in given.items()}
        objects = [{name: value.to(device) for name, value in each.items()} for each in objects]
    return {**given, "labels": objects}


def step(model: nn.Module, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_the_same_step(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-5)
    assert a[1].keys() == b[1].keys()
    for name, gradient in a[1].items():
        scale = max(float(gradient.abs().amax()), 1e-2)
        torch.testing.assert_close(gradient, b[1][name], rtol=1e-4, atol=1e-4 * scale)


def attention_of(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, ATTENTION_CLASS)}


ATTENTION_CLASS = modeling.ConditionalDetrDecoderCrossAttention


def test_all_are_replaced_and_restored() -> None:
    done = accelerate()
    assert ATTENTION in done.replaced
    assert len(done.replaced) > 10
    assert set(done.left) == {name for name, loss in ORIGINAL.items() if criterion_of(loss) in LEFT}
    assert isinstance(LOSS_MAPPING[LOSS], AcceleratedLoss)
    assert attention_of(conditional_detr()) == {fused()}
    assert set(restore()) == set(done.replaced)
    assert LOSS_MAPPING == ORIGINAL
    assert modeling.ConditionalDetrDecoderCrossAttention is ATTENTION_CLASS
    assert attention_of(conditional_detr()) == {ATTENTION_CLASS}
    assert restore() == []


def test_a_second_time_changes_nothing() -> None:
    accelerate()
    before = dict(LOSS_MAPPING)
    done = accelerate()
    assert done.replaced == []
    assert done.left[LOSS] == "it is replaced already"
    assert before == LOSS_MAPPING


def test_a_model_alone() -> None:
    model, other = conditional_detr(), conditional_detr()
    expected = step(other, batch())
    done = accelerate(model)
    assert done.replaced == [LOSS, ATTENTION]
    assert str(done) == f"replaced: {LOSS}, {ATTENTION}"
    assert_the_same_step(step(model, batch()), expected)
    assert LOSS_MAPPING == ORIGINAL
    assert attention_of(other) == {ATTENTION_CLASS}
    assert accelerate(model).left.keys() == {LOSS, ATTENTION}
    assert restore(model) == [LOSS, ATTENTION]
    assert "_loss_function" not in vars(model)
    assert attention_of(model) == {ATTENTION_CLASS}
    assert step(model, batch())[0] == expected[0]


def test_a_class() -> None:
    done = accelerate(ConditionalDetrForObjectDetection)
    assert done.replaced == [LOSS, ATTENTION]
    assert isinstance(conditional_detr().loss_function, AcceleratedLoss)
    assert detr().loss_function is ORIGINAL["ForObjectDetection"]
    assert restore(ConditionalDetrForObjectDetection) == [LOSS, ATTENTION]
    assert conditional_detr().loss_function is ORIGINAL[LOSS]
    assert accelerate(DetrForObjectDetection).replaced == ["ForObjectDetection"]


def test_before_and_after_a_model_is_built_are_the_same() -> None:
    after = conditional_detr()
    accelerate(after)
    accelerate()
    before = conditional_detr()
    assert_the_same_step(step(before, batch()), step(after, batch()))


@pytest.mark.parametrize("make", [conditional_detr, detr])
def test_in_wrappers(make: Any) -> None:
    """DistributedDataParallel and compiled models hold the model inside."""
    model = make()
    expected = step(model, batch())
    assert accelerate(nn.Sequential(model)).replaced
    assert_the_same_step(step(model, batch()), expected)


def test_copies_and_files_of_a_model(tmp_path: Path) -> None:
    model = conditional_detr()
    expected = step(model, batch())
    accelerate(model)
    assert_the_same_step(step(copy.deepcopy(model), batch()), expected)
    assert_the_same_step(step(pickle.loads(pickle.dumps(model)), batch()), expected)
    model.save_pretrained(tmp_path)
    loaded = ConditionalDetrForObjectDetection.from_pretrained(tmp_path).train()
    assert attention_of(loaded) == {ATTENTION_CLASS}
    assert step(loaded, batch())[0] == expected[0]


def test_attention_maps_are_still_there() -> None:
    """Who asks for weights has the package's own attention."""
    model = conditional_detr(attn_implementation="eager").eval()
    given = batch()
    expected = model(**given, output_attentions=True).cross_attentions
    accelerate(model)
    found = model(**given, output_attentions=True).cross_attentions
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_mixed_precision() -> None:
    model, given = conditional_detr(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**given).loss
        accelerate(model)
        loss = model(**given).loss
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.0)
    assert loss.dtype == torch.float32


def test_denoising_queries_and_proposals() -> None:
    torch.manual_seed(0)
    config = RTDetrConfig(
        backbone_config={
            "model_type": "rt_detr_resnet",
            "embedding_size": 16,
            "hidden_sizes": [16, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage2", "stage3", "stage4"],
            "layer_type": "basic",
        },
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=32,
        encoder_attention_heads=4,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_queries=15,
        num_denoising=8,
        num_labels=10,
    )
    model, given = RTDetrForObjectDetection(config).train(), batch()
    torch.manual_seed(2)
    expected = step(model, given)
    assert accelerate(model).replaced == ["RTDetrForObjectDetection"]
    torch.manual_seed(2)
    assert_the_same_step(step(model, given), expected)


def test_compiled() -> None:
    model, given = conditional_detr(), batch()
    accelerate(model)
    expected = step(model, given)
    model.loss_function = torch.compile(model.loss_function, backend="aot_eager")
    assert_the_same_step(step(model, given), expected)


def test_code_that_is_not_known_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.KNOWN, "transformers.loss.loss_d_fine", set())
    monkeypatch.setitem(known.KNOWN, modeling.__name__, set())
    done = accelerate()
    assert {"DFineForObjectDetection", "Deimv2ForObjectDetection", ATTENTION} <= set(done.left)
    version = sys.modules["transformers"].__version__
    why = f"transformers.loss.loss_d_fine of transformers {version} is none that this was tested with"
    assert done.left["DFineForObjectDetection"] == why
    assert LOSS_MAPPING["DFineForObjectDetection"] is ORIGINAL["DFineForObjectDetection"]
    assert "RTDetrForObjectDetection" in done.replaced


def test_losses_of_somebody_else_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(*_: Any, **__: Any) -> None: ...

    monkeypatch.setitem(LOSS_MAPPING, LOSS, own)
    model = detr()
    model.loss_function = own
    why = "somebody has put code of their own there"
    assert accelerate().left[LOSS] == why
    assert accelerate(model).left["ForObjectDetection"] == why
    restore()
    restore(model)
    assert LOSS_MAPPING[LOSS] is own
    assert model.loss_function is own


def own_labels(self: Any, *_: Any) -> dict[str, Tensor]:
    return {"loss_ce": torch.zeros(())}


@pytest.mark.parametrize(
    "name", ["DeformableDetrImageLoss", "DeformableDetrHungarianMatcher", "DeformableDetrImageLoss.loss_labels"]
)
def test_parts_of_somebody_else_are_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A criterion, a matcher, or a method of one."""
    from transformers.loss import loss_deformable_detr as module

    owner, _, method = name.partition(".")
    theirs = getattr(module, owner)
    if method:
        monkeypatch.setattr(theirs, method, own_labels)
    else:
        monkeypatch.setattr(module, owner, type(owner, (theirs,), {"forward": own_labels}))
    assert accelerate().left[LOSS] == "somebody has put code of their own there"
    assert LOSS_MAPPING[LOSS] is ORIGINAL[LOSS]


def test_attention_of_somebody_else_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    own = type("Own", (ATTENTION_CLASS,), {})
    monkeypatch.setattr(modeling, "ConditionalDetrDecoderCrossAttention", own)
    model = conditional_detr()
    assert accelerate().left[ATTENTION] == "somebody has put code of their own there"
    assert accelerate(model).replaced == [LOSS]
    assert attention_of(model) == {own}
    restore()
    assert modeling.ConditionalDetrDecoderCrossAttention is own


def test_a_release_without_that_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(modeling, "ConditionalDetrDecoderCrossAttention")
    monkeypatch.setitem(known.KNOWN, modeling.__name__, set())
    for cached in (places.theirs, places.fused):
        cached.cache_clear()
    try:
        done = accelerate()
        assert LOSS in done.replaced
        assert "is none that this was tested with" in done.left[ATTENTION]
        assert accelerate(detr()).replaced == ["ForObjectDetection"]
    finally:
        for cached in (places.theirs, places.fused):
            cached.cache_clear()


def test_an_error_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str | None:
        raise OSError("disk")

    monkeypatch.setattr(places.LaterAttention, "why_left", fail)
    with pytest.raises(OSError, match="disk"):
        accelerate()
    assert LOSS_MAPPING == ORIGINAL


def test_a_compiled_model_with_a_loss_of_its_own() -> None:
    """Its wrapper passes attributes on; the model inside has them."""
    model = detr()
    compiled = torch.compile(model, backend="eager")
    assert accelerate(compiled).replaced == ["ForObjectDetection"]
    assert accelerate(compiled).replaced == []
    assert restore(compiled) == ["ForObjectDetection"]
    model.loss_function = own_labels
    assert accelerate(compiled).replaced == []
    assert restore(compiled) == []
    assert model.loss_function is own_labels


def test_a_subclass_with_a_loss_of_another_type() -> None:
    class Own(DetrForObjectDetection):
        pass

    accelerate(DetrForObjectDetection)
    torch.manual_seed(0)
    model = Own(DetrConfig(**TINY, backbone_config=backbone()))
    model.loss_type = "DeformableDetrForObjectDetection"
    assert model.loss_function.loss_type == "DeformableDetrForObjectDetection"


def test_all_and_a_class() -> None:
    """Each is taken back alone."""
    accelerate()
    accelerate(ConditionalDetrForObjectDetection)
    restore(ConditionalDetrForObjectDetection)
    assert attention_of(conditional_detr()) == {fused()}
    restore()
    assert attention_of(conditional_detr()) == {ATTENTION_CLASS}


def test_what_is_no_detector() -> None:
    with pytest.raises(ValueError, match="Linear has no loss of the transformers package with a Hungarian matching"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a model, a class of models or None, got 'detr'"):
        accelerate("detr")  # type: ignore[arg-type]


def test_without_the_package() -> None:
    code = "import sys; sys.modules['transformers'] = None; import cond_detr_kernels.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    assert "accelerates the transformers package's detectors: pip install 'transformers>=5.15'" in done.stderr


PROCESSES = """
import sys

import torch
import torch.distributed as dist
from tests.kernels.transformers_inputs import Inputs

from cond_detr_kernels.transformers.losses import ORIGINAL, AcceleratedLoss

torch.set_num_threads(1)
if sys.argv[1] == "accelerate":
    from accelerate import PartialState

    PartialState(cpu=True)
else:
    dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
for loss_type in ("ConditionalDetrForObjectDetection", "LwDetrForObjectDetection", "RTDetrForObjectDetection"):
    inputs = Inputs(loss_type, [5, 2] if dist.get_rank() else [0, 1])
    theirs, ours = ORIGINAL[loss_type](**inputs.make())[0], AcceleratedLoss(loss_type)(**inputs.make())[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("started_by", ["accelerate", "torch"])
def test_two_processes(tmp_path: Path, started_by: str) -> None:
    """The package counts boxes over accelerate's processes, torch's, or those of each alone, by family."""
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, started_by], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]

"""Numerical parity with the Conditional DETR of the transformers package, through the tables in naming.py."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from step_bench import dilate
from torch import Tensor, nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetBackbone,
    ResNetConfig,
)

from cond_detr import DETR, ConditionalDETR, Detector, preset
from cond_detr.classes import Classes
from cond_detr.models.model import Model
from cond_detr.models.position_encoding import ImagePosition
from cond_detr.models.queries import Queries
from cond_detr.models.resnet import LAYOUTS, ResNet
from cond_detr.presets import as_detr
from cond_detr.weights.naming import to_ours
from cond_detr.weights.transfer import load_weights
from cond_detr_kernels import KeyMask

DEPTHS = {"r50": [3, 4, 6, 3], "dc5-r50": [3, 4, 6, 3], "r101": [3, 4, 23, 3], "dc5-r101": [3, 4, 23, 3]}
NUM_CLASSES = 91


def transformers_model(name: str) -> nn.Module:
    """Their model with random weights and batch statistics, dilated by hand where the preset is a DC5 one."""
    backbone = ResNetConfig(depths=DEPTHS[name], out_features=["stage4"])
    model = ConditionalDetrForObjectDetection(ConditionalDetrConfig(backbone_config=backbone, num_labels=NUM_CLASSES))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "backbone" not in parameter_name:
                nn.init.xavier_uniform_(parameter)
            elif "normalization" in parameter_name or "norm" in parameter_name:
                parameter.uniform_(0.8, 1.2)
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.uniform_(0.5, 1.5) if "var" in buffer_name else buffer.normal_(0, 0.1)
    if name.startswith("dc5"):
        dilate(model.model.backbone.model.encoder.stages[3].layers)
    return model.eval()


def padded_batch() -> tuple[Tensor, Tensor]:
    """Two images of different size, and the padding."""
    images, padding = torch.randn(2, 3, 160, 224), torch.zeros(2, 160, 224, dtype=torch.bool)
    padding[0, 131:] = True
    padding[0, :, 190:] = True
    return images * ~padding[:, None], padding


def ours(name: str, fused: bool) -> ConditionalDETR:
    config = preset(name)
    config = replace(config, model=replace(config.model, fused_attn=fused))
    model = ConditionalDETR.new(config, Classes.numbered(NUM_CLASSES))
    model.network.eval()
    return model


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["reference", "fused"])
@pytest.mark.parametrize("name", ["r50", "dc5-r50", "r101", "dc5-r101"])
def test_same_weights_same_predictions(name: str, fused: bool) -> None:
    theirs = transformers_model(name)
    network = ours(name, fused).network
    network.load_state_dict(to_ours(theirs.state_dict()))
    images, padding = padded_batch()
    want = theirs(pixel_values=images, pixel_mask=(~padding).long())
    got = network(images, padding)
    assert want.logits.std() > 0.1
    torch.testing.assert_close(got.logits[-1], want.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.boxes[-1], want.pred_boxes, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["reference", "fused", "detr"])
def test_decoder_attends_to_the_same_positions(kind: str) -> None:
    """Behind a random backbone all positions look alike; here they differ, so that where a query looks decides."""
    theirs = (transformers_detr() if kind == "detr" else transformers_model("r50")).model.decoder
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        elif "attn" in name and parameter.dim() > 1:
            parameter.mul_(2)
    model: Detector = DETR.from_preset("r50", 5) if kind == "detr" else ours("r50", kind == "fused")
    network = model.network.eval()
    state = to_ours({f"model.decoder.{name}": tensor for name, tensor in theirs.state_dict().items()})
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    queries = model.config.model.num_queries
    memory, query_pos = torch.randn(2, 35, 256), torch.randn(1, queries, 256)
    position = ImagePosition(torch.randn(2, 5, 128), torch.randn(2, 7, 128))
    padding = torch.zeros(2, 35, dtype=torch.bool)
    padding[1, 20:] = True
    want = theirs(
        inputs_embeds=torch.zeros(2, queries, 256),
        encoder_hidden_states=memory,
        encoder_attention_mask=~padding,
        spatial_position_embeddings=position.dense(),
        object_queries_position_embeddings=query_pos.expand(2, -1, -1),
    )
    reference = network.reference_point(query_pos).sigmoid()
    outputs, _, _ = network.decoder(Queries(query_pos, reference), memory, position, KeyMask(padding), network.box_head)
    assert outputs[-1].std(1).mean() > 0.1  # queries come to different answers
    torch.testing.assert_close(outputs[-1], want.last_hidden_state, rtol=0, atol=1e-4)
    if kind != "detr":
        theirs_reference = want.reference_points.transpose(0, 1).reshape(2, queries, 2)
        torch.testing.assert_close(reference.expand(2, -1, -1), theirs_reference, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("name", "depths"), [("resnet18", [2, 2, 2, 2]), ("resnet34", [3, 4, 6, 3])])
def test_small_resnets_compute_the_same_features(name: str, depths: list[int]) -> None:
    config = ResNetConfig(layer_type="basic", depths=depths, hidden_sizes=[64, 128, 256, 512], out_features=["stage4"])
    theirs = ResNetBackbone(config).eval()
    state = {f"model.backbone.model.{k}": v for k, v in theirs.state_dict().items()} | {
        "model.decoder.x": torch.zeros(1)
    }
    model = ResNet(LAYOUTS[name])
    model.load_state_dict(
        {
            k.removeprefix("backbone."): v
            for k, v in to_ours(state).items()
            if k.startswith("backbone.") and "tracked" not in k
        }
    )
    images = torch.randn(2, 3, 97, 130)
    want = theirs(images).feature_maps[0]
    torch.testing.assert_close(model(images), want, rtol=0, atol=1e-5 * want.abs().max().item())


def test_reads_the_files_that_transformers_writes(tmp_path: Path) -> None:
    """Their files carry the names of version 4, their modules those of version 5."""
    theirs = transformers_model("r50")
    theirs.save_pretrained(tmp_path)
    model = ours("r50", fused=False)
    report = load_weights(model, str(tmp_path / "model.safetensors"))
    assert not report.missing
    assert not report.unknown
    assert not report.reshaped
    for name, tensor in to_ours(theirs.state_dict()).items():
        assert torch.equal(model.network.state_dict()[name], tensor), name


def transformers_detr() -> nn.Module:
    """Their plain DETR with random weights and batch statistics."""
    config = DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=NUM_CLASSES)
    model: nn.Module = DetrForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "backbone" not in name:
                nn.init.xavier_uniform_(parameter)
            elif "norm" in name:
                parameter.uniform_(0.8, 1.2)
    return model.eval()


@torch.no_grad()
def test_plain_detr_has_the_same_predictions() -> None:
    theirs = transformers_detr()
    network = DETR.from_preset("r50", NUM_CLASSES).network.eval()
    network.load_state_dict(to_ours(theirs.state_dict()))
    images, padding = padded_batch()
    want = theirs(pixel_values=images, pixel_mask=(~padding).long())
    got = network(images, padding)
    assert got.logits.shape == (6, 2, 100, NUM_CLASSES + 1)
    assert want.logits.std() > 0.1
    torch.testing.assert_close(got.logits[-1], want.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.boxes[-1], want.pred_boxes, rtol=0, atol=1e-5)


def test_reads_the_names_of_the_detr_repository(tmp_path: Path) -> None:
    model = Model.new(as_detr(preset("shapes")), Classes.numbered(7))
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.network.state_dict().items():
        key = authors_name(name).replace(".ca_v_proj", ".cross_attn.v_proj").replace(".sa_v_proj", ".self_attn.v_proj")
        packed = re.fullmatch(r"(.*_attn)\.([qkv])_proj\.(weight|bias)", key)
        if packed:
            key = f"{packed[1]}.in_proj_{packed[3]}"
            tensor = torch.cat([theirs[key], tensor]) if key in theirs else tensor
        theirs[key] = tensor
    theirs = {name.replace(".cross_attn.", ".multihead_attn."): tensor for name, tensor in theirs.items()}
    assert "transformer.decoder.layers.0.multihead_attn.in_proj_weight" in theirs
    torch.save({"model": theirs}, tmp_path / "detr.pth")
    other = Model.new(as_detr(preset("shapes")), Classes.numbered(7))
    report = load_weights(other, str(tmp_path / "detr.pth"))
    assert report.missing == report.unknown == report.reshaped == []
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor), name


def authors_name(name: str) -> str:
    """The name that the authors' repository gives to a parameter of ours, its packed projections aside."""
    for pattern, replacement in (
        (r"^backbone\.", "backbone.0.body."),
        (r"^reference_point\.head\.", "decoder.ref_point_head."),
        (r"^decoder\.spatial_query\.", "decoder."),
        (r"^(encoder|decoder)\.", r"transformer.\1."),
        (r"^class_head\.", "class_embed."),
        (r"^box_head\.", "bbox_embed."),
        (r"decoder(.*)\.self_attn\.([qk])_content_proj", r"decoder\1.sa_\2content_proj"),
        (r"decoder(.*)\.self_attn\.([qk])_pos_proj", r"decoder\1.sa_\2pos_proj"),
        (r"decoder(.*)\.self_attn\.v_proj", r"decoder\1.sa_v_proj"),
        (r"\.cross_attn\.([qk])_content_proj", r".ca_\1content_proj"),
        (r"\.cross_attn\.q_pos_proj", ".ca_qpos_proj"),
        (r"\.cross_attn\.q_spatial_proj", ".ca_qpos_sine_proj"),
        (r"\.cross_attn\.k_spatial_proj", ".ca_kpos_proj"),
        (r"\.cross_attn\.v_proj", ".ca_v_proj"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def test_reads_the_authors_names(tmp_path: Path) -> None:
    model = ConditionalDETR.new(preset("shapes"), Classes.numbered(7))
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.network.state_dict().items():
        packed = re.fullmatch(r"encoder\.(layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)", name)
        if packed:
            key = f"transformer.encoder.{packed[1]}.in_proj_{packed[3]}"
            theirs[key] = torch.cat([theirs[key], tensor]) if key in theirs else tensor
        else:
            theirs[authors_name(name)] = tensor
    assert "transformer.decoder.layers.0.ca_qpos_sine_proj.weight" in theirs
    assert "transformer.encoder.layers.0.self_attn.in_proj_weight" in theirs
    torch.save({"model": theirs, "epoch": 49}, tmp_path / "theirs.pth")
    other = ConditionalDETR.new(preset("shapes"), Classes.numbered(7))
    report = load_weights(other, str(tmp_path / "theirs.pth"))
    assert report.missing == report.unknown == report.reshaped == []
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor), name


def test_torchvision_resnet_becomes_the_backbone(tmp_path: Path) -> None:
    model = ours("r50", fused=False)
    torchvision = {
        name.removeprefix("backbone."): torch.randn_like(t).abs()
        for name, t in model.network.state_dict().items()
        if "backbone" in name
    }
    torch.save(torchvision | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "resnet50.pth")
    report = load_weights(model, str(tmp_path / "resnet50.pth"))
    assert len(report.loaded) == len(torchvision)
    assert report.unknown == ["fc.weight"]
    assert torch.equal(
        model.network.state_dict()["backbone.layer4.2.conv3.weight"], torchvision["layer4.2.conv3.weight"]
    )


@pytest.mark.parametrize(("name", "millions"), [("r50", 43.4), ("dc5-r50", 43.4), ("r101", 62.3), ("dc5-r101", 62.3)])
def test_parameter_count(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = ConditionalDETR.from_preset(name, NUM_CLASSES)
    assert sum(p.numel() for p in model.network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_only_the_later_backbone_stages_train() -> None:
    with torch.device("meta"):
        backbone = ConditionalDETR.from_preset("r50", NUM_CLASSES).network.backbone
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters(prefix="backbone") if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_initial_values() -> None:
    """Initialisation as in section 1 of the paper's code: see Network._initialise."""
    model = ConditionalDETR.from_preset("shapes", 3)
    network = model.network
    torch.testing.assert_close(network.class_head.bias, torch.full((3,), -4.59512))
    assert (network.box_head.layers[-1].weight == 0).all()
    assert (network.encoder.layers[0].self_attn.q_proj.bias == 0).all()
    assert (network.decoder.layers[0].cross_attn.out_proj.bias == 0).all()
    bound = (6 / (model.config.model.d_model + model.config.model.ffn_dim)) ** 0.5  # Xavier's
    assert 0.9 * bound < network.encoder.layers[0].linear1.weight.abs().max() <= bound
    assert network.query_embed.weight.std().item() == pytest.approx(1, abs=0.05)

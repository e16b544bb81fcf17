"""Printed summary of a run's settings."""

import torch

from cond_detr import distributed
from cond_detr.config import Config
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.description import crowded, describe_data
from cond_detr.models.model import Model
from cond_detr.models.network import Network
from cond_detr.models.normalization import FrozenBatchNorm2d
from cond_detr.train.cuda_graphs import why_not
from cond_detr_kernels import attention_path


def describe(model: Model, train_set: CocoDataset, val_set: CocoDataset) -> str:
    """Describes a run: data, model, queries, attention, step and batch, a line or two each."""
    config, device, train = model.config, model.device, model.config.train
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    per_step = train.images_per_pass * train.accumulate * distributed.world_size()
    size_step = config.data.size_step
    padded = f", padded to multiples of {size_step} pixels" if size_step else ""
    return "\n".join(
        [
            f"data        {describe_data(train_set)}",
            f"            {describe_data(val_set)}",
            *crowded(train_set.annotations, config.model.num_queries),
            f"model       {config.model.kind}, preset {config.preset}, {parameters:.1f} M parameters, on {device}",
            f"queries     {describe_queries(config)}",
            f"attention   {describe_attention(config, device)}",
            f"step        {describe_step(config, model.network, device)}",
            f"batch       {per_step} images a step = {train.images_per_pass} x {train.accumulate} accumulated "
            f"x {distributed.world_size()} processes{padded}",
        ]
    )


def describe_queries(config: Config) -> str:
    """Says what object queries are, and which ones training has besides."""
    m, train = config.model, config.train
    text = f"{m.num_queries}, boxes" if m.queries == "boxes" else str(m.num_queries)
    more = [f"{train.query_groups} sets of them"] if train.query_groups > 1 else []
    if train.denoising:
        more.append(f"{train.denoising} noised copies of the targets")
    return f"{text}; in training {' and '.join(more)}" if more else text


def describe_attention(config: Config, device: torch.device) -> str:
    """Names the implementation of cross-attention that is used."""
    if config.model.kind == "detr":
        return "added content and position, scaled_dot_product_attention"
    return f"fused: {attention_path(device)}" if config.model.fused_attn else "reference (concatenate, softmax)"


def describe_step(config: Config, network: Network, device: torch.device) -> str:
    """Describes precision, compilation and capture of a step, and why it is not captured if that was asked for."""
    train = config.train
    exact = train.matmul_precision == "highest" or device.type != "cuda"
    fp32 = "fp32" if exact else "fp32 with TF32 products"
    parts = [f"bf16 autocast, else {fp32}" if train.amp == "bf16" else fp32]
    if train.compile:
        parts.append("torch.compile")
    if train.cuda_graphs:
        obstacle = why_not(config, network, device)
        parts.append(f"no CUDA graphs: {obstacle}" if obstacle else "CUDA graphs")
    if train.checkpointing:
        parts.append("gradient checkpointing")
    if train.freeze != "nothing":
        parts.append(f"frozen up to the {train.freeze}")
    if train.ema:
        parts.append(f"weights averaged with decay {train.ema:g}")
    return ", ".join(parts)


def pretraining_warning(network: Network) -> str:
    """Warning about a backbone that lacks pretrained weights; empty if it does not."""
    if not lacks_pretraining(network):
        return ""
    return (
        ". WARNING: this backbone's first stage and batch norm are not trained and are meant to come from ImageNet; "
        "pass --weights, or in Python load_weights, with a torchvision ResNet or a trained detector"
    )


def lacks_pretraining(network: Network) -> bool:
    """Whether frozen layers of the backbone are untrained: batch norm statistics are still their initial zeros."""
    return isinstance(network.backbone.bn1, FrozenBatchNorm2d) and not bool(network.backbone.bn1.running_mean.any())

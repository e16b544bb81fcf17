"""Tensor names of other implementations: tables that translate them to ours and back.

In a pattern ``#`` stands for a number, and ``*`` at the end for any text. Where several patterns match a name, the
first one counts.
"""

import functools
import re

import torch
from torch import Tensor

from cond_detr.errors import InputError, shown

StateDict = dict[str, Tensor]
# (theirs, ours)
Pairs = tuple[tuple[str, str], ...]


def below(theirs: str, ours: str, pairs: Pairs) -> Pairs:
    """Prepends a prefix to their names and one to ours."""
    return tuple((theirs + a, ours + b) for a, b in pairs)


# torchvision's and timm's ResNets have our names, the transformers package's its own
RESNET: Pairs = (("conv1.*", "conv1.*"), ("bn1.*", "bn1.*"), ("layer#.*", "layer#.*"))
RESNET_TRANSFORMERS: Pairs = (
    ("embedder.embedder.convolution.*", "conv1.*"),
    ("embedder.embedder.normalization.*", "bn1.*"),
    *(
        (f"encoder.stages.{stage}.layers.#.{theirs}.*", f"layer{stage + 1}.#.{ours}.*")
        for stage in range(4)
        for theirs, ours in (
            *((f"layer.{i}.convolution", f"conv{i + 1}") for i in range(3)),
            *((f"layer.{i}.normalization", f"bn{i + 1}") for i in range(3)),
            ("shortcut.convolution", "downsample.0"),
            ("shortcut.normalization", "downsample.1"),
        )
    ),
)

# Projections of Conditional DETR's decoder: the authors', which the transformers package's files kept, and its modules'
FLAT_PROJECTIONS: Pairs = (
    ("ca_qcontent_proj.*", "cross_attn.q_content_proj.*"),
    ("ca_qpos_proj.*", "cross_attn.q_pos_proj.*"),
    ("ca_qpos_sine_proj.*", "cross_attn.q_spatial_proj.*"),
    ("ca_kcontent_proj.*", "cross_attn.k_content_proj.*"),
    ("ca_kpos_proj.*", "cross_attn.k_spatial_proj.*"),
    ("ca_v_proj.*", "cross_attn.v_proj.*"),
    ("sa_qcontent_proj.*", "self_attn.q_content_proj.*"),
    ("sa_qpos_proj.*", "self_attn.q_pos_proj.*"),
    ("sa_kcontent_proj.*", "self_attn.k_content_proj.*"),
    ("sa_kpos_proj.*", "self_attn.k_pos_proj.*"),
    ("sa_v_proj.*", "self_attn.v_proj.*"),
)
MODULE_PROJECTIONS: Pairs = (
    ("encoder_attn.q_pos_sine_proj.*", "cross_attn.q_spatial_proj.*"),
    ("encoder_attn.k_pos_proj.*", "cross_attn.k_spatial_proj.*"),
)


def original(projections: Pairs) -> Pairs:
    """Names in the repositories of DETR and Conditional DETR, where ``in_proj`` packs queries, keys and values.

    Args:
        projections: names of the decoder's projections; empty for DETR.
    """
    attention = (("self_attn.*", "self_attn.*"), ("multihead_attn.*", "cross_attn.*"), ("cross_attn.*", "cross_attn.*"))
    rest: Pairs = (("linear#.*", "linear#.*"), ("norm#.*", "norm#.*"))
    return (
        *below("backbone.0.body.", "backbone.", RESNET),
        ("input_proj.*", "input_proj.*"),
        ("query_embed.*", "query_embed.*"),
        ("class_embed.*", "class_head.*"),
        ("bbox_embed.*", "box_head.*"),
        ("transformer.decoder.norm.*", "decoder.norm.*"),
        ("transformer.decoder.ref_point_head.*", "reference_point.head.*"),
        ("transformer.decoder.query_scale.*", "decoder.spatial_query.query_scale.*"),
        *below("transformer.encoder.layers.#.", "encoder.layers.#.", (*attention, *rest)),
        *below("transformer.decoder.layers.#.", "decoder.layers.#.", (*projections, *attention, *rest)),
    )


def transformers(backbone: Pairs, projections: Pairs, output: str, ffn: str) -> Pairs:
    """Names in the transformers package.

    Args:
        backbone: names of the backbone.
        projections: names of the decoder's projections; empty for DETR.
        output: name of the output projection of attention.
        ffn: name of the linear layers of the feed-forward networks, without their number.
    """
    rest: Pairs = (
        (f"self_attn.{output}.*", "self_attn.out_proj.*"),
        ("self_attn.*", "self_attn.*"),
        (f"{ffn}#.*", "linear#.*"),
        ("self_attn_layer_norm.*", "norm1.*"),
    )
    cross = ((f"encoder_attn.{output}.*", "cross_attn.out_proj.*"), ("encoder_attn.*", "cross_attn.*"))
    norms = (("encoder_attn_layer_norm.*", "norm2.*"), ("final_layer_norm.*", "norm3.*"))
    return (
        *backbone,
        ("model.input_projection.*", "input_proj.*"),
        ("model.query_position_embeddings.*", "query_embed.*"),
        ("class_labels_classifier.*", "class_head.*"),
        ("bbox_predictor.*", "box_head.*"),
        ("model.decoder.layernorm.*", "decoder.norm.*"),
        ("model.decoder.ref_point_head.*", "reference_point.head.*"),
        ("model.decoder.query_scale.*", "decoder.spatial_query.query_scale.*"),
        *below("model.encoder.layers.#.", "encoder.layers.#.", (*rest, ("final_layer_norm.*", "norm2.*"))),
        *below("model.decoder.layers.#.", "decoder.layers.#.", (*projections, *cross, *rest, *norms)),
    )


_FILE_RESNET = below("model.backbone.conv_encoder.model.", "backbone.", RESNET_TRANSFORMERS)
_FILE_TIMM = below("model.backbone.conv_encoder.model.", "backbone.", RESNET)
_MODULE_RESNET = below("model.backbone.model.", "backbone.", RESNET_TRANSFORMERS)
_MODULE_TIMM = below("model.backbone.model.", "backbone.", RESNET)

# Formats by kind of detector. transformers: files of the package; -timm: files with timm's backbone, as published for
# Conditional DETR and DETR; -modules: names of the modules of a loaded model
LAYOUTS: dict[str, dict[str, Pairs]] = {
    kind: {
        "original": original(projections),
        "transformers": transformers(_FILE_RESNET, projections, "out_proj", "fc"),
        "transformers-timm": transformers(_FILE_TIMM, projections, "out_proj", "fc"),
        "transformers-modules": transformers(
            (*_MODULE_RESNET, *_MODULE_TIMM), MODULE_PROJECTIONS if projections else (), "o_proj", "mlp.fc"
        ),
        "torchvision": below("", "backbone.", RESNET),
    }
    for kind, projections in (("conditional-detr", FLAT_PROJECTIONS), ("detr", ()))
}


def to_ours(state: StateDict) -> StateDict:
    """Renames the tensors of another implementation by the table that matches most of them; other names are kept.

    Raises:
        InputError: if two of them have the same name of ours.
    """
    state = unpack(state)
    best: dict[str, str] = {}
    for layouts in LAYOUTS.values():
        for pairs in layouts.values():
            found = {name: ours for name in state if (ours := _renamed(name, pairs))}
            best = max(best, found, key=len)
    renamed: StateDict = {}
    for name, tensor in state.items():
        ours = best.get(name, name)
        if ours in renamed:
            raise InputError(f"two of its tensors stand for {shown(ours)[1:-1]}")
        renamed[ours] = tensor
    return renamed


def from_ours(state: StateDict, kind: str, layout: str) -> StateDict:
    """Renames our tensors for another implementation.

    Args:
        state: tensors of a detector by our names.
        kind: kind of the detector.
        layout: a name in :data:`LAYOUTS`; "torchvision" keeps only the tensors of the backbone.

    Raises:
        InputError: if the layout has no name for a tensor, such as one of an ablation.
    """
    pairs = tuple((ours, theirs) for theirs, ours in LAYOUTS[kind][layout])
    renamed = {theirs: tensor for name, tensor in state.items() if (theirs := _renamed(name, pairs))}
    if layout != "torchvision" and len(renamed) < len(state):
        unnamed = next(name for name in state if _renamed(name, pairs) is None)
        raise InputError(f"format {layout} has no name for {shown(unnamed)[1:-1]}: it knows the paper's {kind} only")
    return pack(renamed) if layout == "original" else renamed


def unpack(state: StateDict) -> StateDict:
    """Splits torch's packed ``in_proj_weight`` and ``in_proj_bias`` into query, key and value projections."""
    unpacked = {}
    for name, tensor in state.items():
        packed = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name)
        if packed:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                unpacked[f"{packed[1]}.{part}_proj.{packed[2]}"] = chunk
        else:
            unpacked[name] = tensor
    return unpacked


def pack(state: StateDict) -> StateDict:
    """The inverse of :func:`unpack`."""
    packed = {}
    for name, tensor in state.items():
        part = re.fullmatch(r"(.*)\.([qkv])_proj\.(weight|bias)", name)
        if part is None:
            packed[name] = tensor
        elif part[2] == "q":
            three = [state[f"{part[1]}.{letter}_proj.{part[3]}"] for letter in "qkv"]
            packed[f"{part[1]}.in_proj_{part[3]}"] = torch.cat(three)
    return packed


def _renamed(name: str, pairs: Pairs) -> str | None:
    for pattern, replacement in _compiled(pairs):
        match = pattern.fullmatch(name)
        if match:
            return match.expand(replacement)
    return None


@functools.cache
def _compiled(pairs: Pairs) -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(left), _replacement(right)) for left, right in pairs]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\#", r"(\d+)").replace(r"\*", "(.*)"))


def _replacement(text: str) -> str:
    numbers = iter(range(1, 10))
    return re.sub(r"[#*]", lambda _: rf"\g<{next(numbers)}>", text)

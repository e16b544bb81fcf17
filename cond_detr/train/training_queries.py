"""Object queries that only training has: further sets of them (Group DETR), and noised copies of the targets (DN-DETR).

They make training faster and are gone afterwards: checkpoints for detection do not hold them, and evaluation, export
and prediction run the network alone.
"""

import torch
from torch import Tensor, nn

from cond_detr.config import TrainConfig
from cond_detr.data.batching import Targets
from cond_detr.models.mlp import MLP
from cond_detr.models.network import Network
from cond_detr.models.predictions import Predictions
from cond_detr.models.queries import Queries, QuerySets, box_embedding
from cond_detr.models.reference_point import ReferencePoint
from cond_detr.train.criterion import real_targets
from cond_detr.weights.checkpoint import Checkpoint

# Noise of the copies, as in DN-DETR: largest shift of the centre and change of the size, as parts of the box's size
# (half of it for the centre), and how many copies have another class
BOX_NOISE = 0.4
LABEL_NOISE = 0.2
NETWORK = "network."


def for_training(network: Network, train: TrainConfig) -> nn.Module:
    """The module to train: the network itself, or with the queries that the settings add.

    Its parameters are drawn from torch's generator.
    """
    if train.query_groups == 1 and not train.denoising:
        return network
    return WithTrainingQueries(network, train.query_groups, train.denoising)


def own_state(module: nn.Module) -> dict[str, Tensor] | None:
    """State of a module by :func:`for_training` without the network's; None if it is the network."""
    if isinstance(module, Network):
        return None
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(NETWORK)}


def restore_queries(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Restores what :func:`own_state` saved.

    Raises:
        InputError: if the checkpoint has other queries, or none.
    """
    own = own_state(module)
    if own is not None:
        checkpoint.check_queries(own)
        module.load_state_dict(checkpoint.queries or {}, strict=False)


class WithTrainingQueries(nn.Module):
    """A network with the queries of training; :class:`cond_detr.train.criterion.Criterion` takes its predictions.

    Args:
        network: the network.
        query_groups: sets of object queries, the network's own among them.
        denoising: sets of noised targets.
    """

    def __init__(self, network: Network, query_groups: int, denoising: int) -> None:
        super().__init__()
        self.network = network
        self.query_groups = query_groups
        self.more = MoreQueries(network, query_groups - 1) if query_groups > 1 else None
        self.noised = NoisedTargets(network, denoising) if denoising else None

    def forward(self, images: Tensor, padding: Tensor | None = None, targets: Targets | None = None) -> Predictions:
        """Predictions of all queries: the network's own, further sets, and noised copies of the targets.

        Args:
            images: (B, 3, H, W) fp32, normalised.
            padding: (B, H, W) bool, True where padded; None if nothing is.
            targets: padded targets of the B images; needed for denoising.
        """
        queries = self.network.object_queries()
        size = queries.reference.shape[1]
        if self.more is not None:
            queries = joined(queries, self.more())
        sets = QuerySets(self.query_groups, size)
        if self.noised is not None:
            assert targets is not None
            queries = joined(queries, self.noised(targets))
            sets = sets._replace(denoising=self.noised.copies, real=real_targets(targets))
        predictions: Predictions = self.network(images, padding, queries._replace(sets=sets))
        return predictions


def joined(first: Queries, second: Queries) -> Queries:
    """Queries one after the other, for each image if one of them is."""
    batch = max(len(first.reference), len(second.reference))

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None and b is None:
            return None
        # the first embeddings of object queries are zeros
        a = b.new_zeros(batch, first.reference.shape[1], b.shape[2]) if a is None and b is not None else a
        assert a is not None
        assert b is not None
        return torch.cat([a.expand(batch, -1, -1), b.expand(batch, -1, -1)], dim=1)

    reference = both(first.reference, second.reference)
    assert reference is not None
    return Queries(both(first.embedding, second.embedding), reference, both(first.content, second.content))


class MoreQueries(nn.Module):
    """Further sets of object queries, of the kind that the network has.

    Args:
        network: the network.
        sets: number of sets.
    """

    def __init__(self, network: Network, sets: int) -> None:
        super().__init__()
        m = network.m
        count = sets * m.num_queries
        self.query_embed = None if m.queries == "boxes" else nn.Embedding(count, m.d_model)
        kind = "boxes" if m.queries == "boxes" else "learned"
        points = network.reference_point.points is not None
        self.reference_point = ReferencePoint(kind, count, m.d_model) if points else None
        # a list, as the parameters of that module are the network's
        self._shared = [network.reference_point]

    def forward(self) -> Queries:
        """The queries, the same for all images."""
        embedding = None if self.query_embed is None else self.query_embed.weight[None]
        reference_point = self._shared[0] if self.reference_point is None else self.reference_point
        return Queries(embedding, reference_point(embedding).sigmoid())


class NoisedTargets(nn.Module):
    """Queries made from the targets, moved, resized and some of another class, for the decoder to mend (DN-DETR).

    Args:
        network: the network.
        copies: number of copies of all targets, each a set of its own.
    """

    def __init__(self, network: Network, copies: int) -> None:
        super().__init__()
        m = network.m
        self.copies = copies
        self.dims = 4 if m.queries == "boxes" else 2
        self.d_model = m.d_model
        self.num_classes = network.class_head.out_features - int(network.softmax)
        self.label_embed = nn.Embedding(self.num_classes, m.d_model)
        self.box_position = None if m.queries == "boxes" else MLP(2 * m.d_model, m.d_model, m.d_model, num_layers=2)

    def forward(self, targets: Targets) -> Queries:
        """Queries (B, copies * T) of B images with T padded targets each."""
        boxes = noised_boxes(targets.boxes.repeat(1, self.copies, 1))
        labels = noised_labels(targets.labels.repeat(1, self.copies), self.num_classes)
        embedding = None
        if self.box_position is not None:
            embedding = self.box_position(box_embedding(boxes, self.d_model)).float()
        return Queries(embedding, boxes[..., : self.dims], self.label_embed(labels))


def noised_boxes(boxes: Tensor) -> Tensor:
    """Boxes (..., 4), cxcywh in fractions of the image size, with noise: moved by less than their half, and resized."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    moved, grown = (torch.rand_like(boxes) * 2 - 1).chunk(2, dim=-1)
    noised = torch.cat([centre + moved * BOX_NOISE * size / 2, size * (1 + grown * BOX_NOISE)], dim=-1)
    return noised.clamp(0, 1)


def noised_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Class indices, some of them replaced by any."""
    other = (torch.rand(labels.shape, device=labels.device) * num_classes).long().clamp(max=num_classes - 1)
    return torch.where(torch.rand(labels.shape, device=labels.device) < LABEL_NOISE, other, labels)

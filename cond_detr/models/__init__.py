"""The networks and their modules."""

from cond_detr.models.conditional_detr import ConditionalDETRNetwork
from cond_detr.models.detr import DETRNetwork
from cond_detr.models.model import NETWORKS, Model, new_network
from cond_detr.models.network import Network

__all__ = ["NETWORKS", "ConditionalDETRNetwork", "DETRNetwork", "Model", "Network", "new_network"]

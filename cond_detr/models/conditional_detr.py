"""Conditional DETR (Meng et al., ICCV 2021)."""

from cond_detr.models.decoder import ConditionalDecoder
from cond_detr.models.network import Network


class ConditionalDETRNetwork(Network):
    """The paper's network: backbone, encoder, conditional decoder and prediction heads."""

    kind = "conditional-detr"
    decoder_class = ConditionalDecoder

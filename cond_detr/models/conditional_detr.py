"""Conditional DETR (Meng et al., ICCV 2021)."""

from cond_detr.models.decoder import ConditionalDecoder
from cond_detr.models.detector import Detector


class ConditionalDETR(Detector):
    """The paper's detector: backbone, encoder, conditional decoder, heads."""

    kind = "conditional-detr"
    decoder_class = ConditionalDecoder

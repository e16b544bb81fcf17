"""Published weights, by names for ``--weights`` and ``--checkpoint``."""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from cond_detr.errors import InputError, nearest, need
from cond_detr.paths import exists

PYTORCH = "https://download.pytorch.org/models/"
DETR = "https://dl.fbaipublicfiles.com/detr/"
HUB = "https://huggingface.co/"
NAME_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Of a repository on the hub, whichever comes first
FILES = ("model.safetensors", "pytorch_model.bin")


class Published(NamedTuple):
    """A file of weights that somebody has published.

    Attributes:
        address: where it lies.
        sha256: the first digits of its SHA-256, as its publisher says; empty if not known, then https alone vouches
            for the file.
        megabytes: about its size.
        licence: of the weights.
        preset: architecture, which the tensors of dilated models do not show; None for a backbone.
    """

    address: str
    sha256: str
    megabytes: int
    licence: str
    preset: str | None = None


PUBLISHED = {
    "resnet50": Published(f"{PYTORCH}resnet50-0676ba61.pth", "0676ba61", 98, "BSD-3-Clause"),
    "resnet50-v2": Published(f"{PYTORCH}resnet50-11ad3fa6.pth", "11ad3fa6", 98, "BSD-3-Clause"),
    "resnet101": Published(f"{PYTORCH}resnet101-63fe2227.pth", "63fe2227", 171, "BSD-3-Clause"),
    "resnet101-v2": Published(f"{PYTORCH}resnet101-cd907fc2.pth", "cd907fc2", 171, "BSD-3-Clause"),
    "conditional-detr-r50": Published(
        f"{HUB}microsoft/conditional-detr-resnet-50/resolve/main/model.safetensors", "", 174, "Apache-2.0", "r50"
    ),
    "detr-r50": Published(f"{DETR}detr-r50-e632da11.pth", "e632da11", 159, "Apache-2.0", "r50"),
    "detr-r101": Published(f"{DETR}detr-r101-2c7b67e5.pth", "2c7b67e5", 232, "Apache-2.0", "r101"),
    "detr-dc5-r50": Published(f"{DETR}detr-r50-dc5-f0fb7ef5.pth", "f0fb7ef5", 159, "Apache-2.0", "dc5-r50"),
    "detr-dc5-r101": Published(f"{DETR}detr-r101-dc5-a2e86def.pth", "a2e86def", 232, "Apache-2.0", "dc5-r101"),
}


def published(source: str) -> Published | None:
    """The published file of a name, unless a file is called so."""
    return None if exists(source) else PUBLISHED.get(source)


def is_on_the_hub(source: str) -> bool:
    """Whether a source is ``namespace/name`` of the hub: it has no suffix of weights, and there is no such folder."""
    if not NAME_ON_HUB.fullmatch(source) or exists(source.partition("/")[0]):
        return False
    return Path(source).suffix not in {".pt", ".pth", ".bin", ".safetensors"}


def from_the_hub(source: str) -> Path:
    """The file of weights of a repository on the hub, in the hub's cache, its config.json beside it.

    Raises:
        InputError: if it cannot be had, or huggingface_hub is not installed.
    """
    try:
        need("hub", "huggingface_hub")
    except InputError as error:
        raise InputError(f"weights {source} are no file; to have them from the hub, {error}") from None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with contextlib.suppress(EntryNotFoundError):  # then class names are numbers
            hf_hub_download(source, "config.json")
        for name in FILES:
            try:
                return Path(hf_hub_download(source, name))
            except EntryNotFoundError:
                continue
    except Exception as error:  # of the network, of the hub, and of names that cannot be
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"weights {source} cannot be had from the hub: {why}") from None
    raise InputError(f"weights {source} of the hub have none of {', '.join(FILES)}")


def meant(source: str) -> str | None:
    """The published name that a misspelt one is most like."""
    return nearest(source, PUBLISHED)

"""Downloading a file over https."""

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from cond_detr.errors import InputError
from cond_detr.version import __version__

# Seconds that a server may be silent, and bytes that no file of weights has
PATIENCE = 30
MOST_BYTES = 1 << 36
AT_ONCE = 1 << 20
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def check_address(url: str) -> None:
    """Checks that what comes from an address is what lies there.

    Raises:
        InputError: if it is neither https nor on this machine.
    """
    address = urlparse(url)
    if address.scheme != "https" and address.hostname not in THIS_MACHINE:
        raise InputError(f"{url} is not https, so that anybody on the way could have changed what comes")


class SafeRedirects(HTTPRedirectHandler):
    """Follows redirections to where a download could have been asked for as well."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """As the base class does, for an address that :func:`check_address` allows."""
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, path: Path) -> None:
    """Downloads a file, with a progress bar on a terminal.

    Args:
        url: its address; http, which anybody on the way can change, only on this machine.
        path: where to write it.

    Raises:
        InputError: if the address is not https, or the file is too large.
        OSError: if the server cannot be reached, is silent for too long, or the file is cut off.
        ValueError: if there can be no such address.
    """
    check_address(url)
    request = Request(url, headers={"User-Agent": f"cond-detr/{__version__}"})
    with build_opener(SafeRedirects).open(request, timeout=PATIENCE) as answer, path.open("wb") as file:
        announced = answer.headers.get("Content-Length", "")
        size = int(announced) if announced.isdecimal() else None
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=not sys.stderr.isatty(), leave=False)
        done = 0
        while part := answer.read(AT_ONCE):
            done += len(part)
            if done > MOST_BYTES:
                raise InputError(f"{url} is larger than {MOST_BYTES >> 30} GB")
            file.write(part)
            bar.update(len(part))
        bar.close()
    if size is not None and done < size:
        raise OSError(f"it was cut off after {done} of {size} bytes")

"""Downloading a file over https."""

import io
from collections.abc import Callable
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cond_detr import progress
from cond_detr.errors import InputError
from cond_detr.version import __version__

# Seconds that a server may be silent; bytes that no file of weights has, and no image
PATIENCE = 30
MOST_BYTES = 1 << 36
MOST_IN_MEMORY = 1 << 28
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


def is_address(source: str) -> bool:
    """Whether a text is an address rather than a path."""
    return "://" in source


def fetch_bytes(url: str, name: str, most_bytes: int = MOST_IN_MEMORY) -> bytes:
    """Downloads a small file into memory.

    Args:
        url: its address, as of :func:`fetch`.
        name: what messages call it.
        most_bytes: more than that it cannot have.

    Raises:
        InputError: if it cannot be downloaded.
    """
    file = io.BytesIO()
    try:
        fetch(url, file, name, most_bytes)
    except (OSError, HTTPException, ValueError) as error:  # InputError, too, is a ValueError
        raise InputError(f"{name} cannot be downloaded: {error}") from None
    return file.getvalue()


def fetch(
    url: str,
    file: IO[bytes],
    name: str,
    most_bytes: int = MOST_BYTES,
    *,
    version: str | None = None,
    note_version: Callable[[str | None], None] = lambda _: None,
) -> None:
    """Downloads a file, with a progress bar on a terminal.

    Args:
        url: its address; http, which anybody on the way can change, only on this machine.
        file: where to write it, from where it stands.
        name: what the progress bar calls it.
        most_bytes: more than that it cannot have.
        version: what the server called the version of which ``file`` has the beginning. The rest is appended if the
            server still has that version, else all of it is written anew.
        note_version: is told, before anything is written, what the server calls this version; None if it has no name.

    Raises:
        InputError: if the address is not https, or the file is too large.
        OSError: if the server cannot be reached, is silent for too long, or the file is cut off.
        ValueError: if there can be no such address.
    """
    check_address(url)
    begun = file.tell() if version else 0
    headers = {"User-Agent": f"cond-detr/{__version__}"}
    if version and begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": version}
    with build_opener(SafeRedirects).open(Request(url, headers=headers), timeout=PATIENCE) as answer:
        if begun and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {begun}-"):
            begun = 0
            file.seek(0)
            file.truncate()
        note_version(version_of(answer.headers))
        announced = answer.headers.get("Content-Length", "")
        size = begun + int(announced) if announced.isdecimal() else None
        with progress.bar(total=size, initial=begun, unit="B", unit_scale=True, desc=name, leave=False) as bar:
            done = begun
            while part := answer.read(AT_ONCE):
                done += len(part)
                if done > most_bytes:
                    raise InputError(f"{url} is larger than {most_bytes >> 20} MB")
                file.write(part)
                bar.update(len(part))
    if size is not None and done < size:
        raise OSError(f"it was cut off after {done} of {size} bytes")


def version_of(headers: Any) -> str | None:
    """What a server calls the version of a file whose rest it would send, if it does so."""
    tag, date = headers.get("ETag"), headers.get("Last-Modified")
    if headers.get("Accept-Ranges") != "bytes" and not headers.get("Content-Range"):
        return None
    return tag if tag and not tag.startswith("W/") else date

"""Downloading a file over https."""

import io
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlparse, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cond_detr import progress
from cond_detr.connection import PATIENCE, PacedHandler
from cond_detr.errors import InputError
from cond_detr.version import __version__

# Bytes that no file of weights has, and no image
MOST_BYTES = 1 << 36
MOST_IN_MEMORY = 1 << 28
AT_ONCE = 1 << 16
# Characters of a message, of what servers say
LONGEST_REASON = 300
# Sharp s, final sigma and invisible joiners
OTHERWISE_TODAY = set("\u00df\u03c2\u200c\u200d")
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def check_address(url: str) -> None:
    """Checks that what comes from an address is what lies there.

    Raises:
        InputError: if it is neither https nor on this machine, or there can be no such address.
    """
    try:
        address = urlparse(url)
        address.port  # noqa: B018 - raises where it is none
        in_ascii(address.hostname or "")
    except ValueError as error:
        raise InputError(f"{shortened(url)} is no address: {shortened(str(error))}") from None
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in THIS_MACHINE):
        raise InputError(f"{shortened(url)} is not https, so that anybody on the way could have changed what comes")


class SafeRedirects(HTTPRedirectHandler):
    """Follows redirections to where a download could have been asked for as well."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """As the base class does, for an address that :func:`check_address` allows."""
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """As the base class does, but without the page that comes with it: a server may never end that."""
        fp.read = lambda *_: b""
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def is_address(source: str) -> bool:
    """Whether a text is an address rather than a path."""
    return "://" in source


def path_at(url: str) -> PurePosixPath:
    """The path in an address.

    Raises:
        InputError: if there can be no such address.
    """
    try:
        return PurePosixPath(urlparse(url).path)
    except ValueError as error:
        raise InputError(f"{shortened(url)} is no address: {shortened(str(error))}") from None


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
        raise InputError(f"{name} cannot be downloaded: {reason(error)}") from None
    return file.getvalue()


def reason(error: Exception) -> str:
    """Why a download has failed, without what urllib puts around it."""
    if isinstance(error, IncompleteRead):
        return "it was cut off"
    said = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    return shortened(" ".join(str(said).split()))


def shortened(text: str) -> str:
    """A text that a server can have made as long as it likes."""
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


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
        file: where to write it. It stands behind what it has already.
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
    answer = _rest(url, begun, version) if version and begun else None
    if answer is None:
        begun = 0
        file.seek(0)
        file.truncate()
        answer = _opened(url)
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            answer.close()
            raise OSError("the server sent a part of it, and was asked for all")
    with answer:
        note_version(version_of(answer.headers))
        size, done = _size(answer.headers, begun), begun
        with progress.bar(total=size, initial=begun, unit="B", unit_scale=True, desc=name, leave=False) as bar:
            while part := answer.read1(AT_ONCE):
                done += len(part)
                if done > most_bytes:
                    raise InputError(f"{url} is larger than {most_bytes >> 20} MB")
                file.write(part)
                bar.update(len(part))
    if size is not None and done != size:
        raise OSError(f"it was cut off after {done} of {size} bytes" if done < size else f"{done} bytes came of {size}")


def _opened(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """A server's answer, to be closed."""
    asked = Request(as_sent(url), headers={"User-Agent": f"cond-detr/{__version__}", **(headers or {})})
    return build_opener(SafeRedirects, PacedHandler).open(asked, timeout=PATIENCE)


def _rest(url: str, begun: int, version: str) -> Any:
    """The answer with what follows the first bytes of a version of a file; None if the server has no such rest.

    That it sends a rest is not enough: it must be of the same version, or two files become one.
    """
    try:
        answer = _opened(url, {"Range": f"bytes={begun}-", "If-Range": version})
    except HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return None
    goes_on = (answer.headers.get("Content-Range") or "").startswith(f"bytes {begun}-")
    same = version in (answer.headers.get("ETag"), answer.headers.get("Last-Modified"))
    if answer.status == HTTPStatus.PARTIAL_CONTENT and goes_on and same:
        return answer
    answer.close()
    return None


def _size(headers: Any, begun: int) -> int | None:
    """Of the whole file, in bytes; None if the server does not say. A rest may be sent in parts."""
    whole = _count((headers.get("Content-Range") or "").rpartition("/")[2])
    announced = _count(headers.get("Content-Length") or "")
    if whole is None and announced is not None:
        return begun + announced
    return whole


def _count(text: str) -> int | None:
    """The number of bytes that a header has; None if it has none, or one with more digits than any file's."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def as_sent(url: str) -> str:
    """An address with what cannot be sent as it is, such as spaces and letters with accents, escaped."""
    parts = urlsplit(url)
    if not parts.netloc.isascii():
        user, at, place = parts.netloc.rpartition("@")
        host, colon, port = place.partition(":")
        parts = parts._replace(netloc=f"{user}{at}{in_ascii(host)}{colon}{port}")
    as_is = "/%:@!$&'()*+,;=~?"
    return urlunsplit(parts._replace(path=quote(parts.path, safe=as_is), query=quote(parts.query, safe=as_is)))


def in_ascii(host: str) -> str:
    """The name of a host as it is sent.

    Raises:
        ValueError: if it cannot be one, or has letters for which Python's older rules say another host than today's.
    """
    if OTHERWISE_TODAY.intersection(host):
        raise ValueError(f"write {host} as the registrar does, beginning with xn--")
    return host.encode("idna").decode()


def version_of(headers: Any) -> str | None:
    """What a server calls the version of a file whose rest it would send, if it does so."""
    tag, date = headers.get("ETag"), headers.get("Last-Modified")
    if headers.get("Accept-Ranges") != "bytes" and not headers.get("Content-Range"):
        return None
    return tag if tag and not tag.startswith("W/") else date

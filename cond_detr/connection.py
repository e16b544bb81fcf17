"""Connections to servers that are given up if they are too slow."""

import io
import ssl
import time
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, Request

# Seconds that a server may be silent
PATIENCE = 30
# Bytes a second on average, once our patience is over
SLOWEST = 1000
# Bytes before a file: a server can go on with headers for ever as well
MOST_HEADERS = 1 << 20


class Paced(io.RawIOBase):
    """What a server sends, as long as it is fast enough, and while :attr:`most` is set not more than that.

    Args:
        raw: where it comes from.
    """

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self.raw, self.count, self.most = raw, 0, MOST_HEADERS
        self.began: float | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As of any stream.

        Raises:
            OSError: if the server is too slow, or sends too much.
        """
        count: int | None = self.raw.readinto(buffer)
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        self.count += count or 0
        if now - self.began > PATIENCE and self.count < SLOWEST * (now - self.began):
            raise OSError(f"the server sent {self.count} bytes in {now - self.began:.0f} seconds")
        if self.most and self.count > self.most:
            raise OSError(f"the server sent more than {self.most >> 10} kB before any file")
        return count

    def close(self) -> None:
        """Closes the source as well."""
        self.raw.close()
        super().close()


class PacedResponse(HTTPResponse):
    """An answer that is read through :class:`Paced`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.paced = Paced(self.fp.detach())
        self.fp = io.BufferedReader(self.paced)

    def begin(self) -> None:
        """Reads what comes before the file."""
        super().begin()
        self.paced.most = 0


class PacedConnection(HTTPConnection):
    """A connection to this machine."""

    response_class = PacedResponse


class PacedSafeConnection(HTTPSConnection):
    """A connection to any other."""

    response_class = PacedResponse


class PacedHandler(HTTPHandler, HTTPSHandler):
    """Opens connections whose servers must be fast enough."""

    def __init__(self) -> None:
        super().__init__()
        self.context = ssl.create_default_context()

    def http_open(self, req: Request) -> Any:
        """Asks on this machine."""
        return self.do_open(PacedConnection, req)

    def https_open(self, req: Request) -> Any:
        """Asks anywhere else."""
        return self.do_open(PacedSafeConnection, req, context=self.context)

"""Connections to servers that are given up if they are too slow."""

import io
import ssl
import time
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, Request

# Seconds that a server may be silent, and after which its pace is looked at each time
PATIENCE = 30
# Bytes a second on average over that time
SLOWEST = 1000
# Bytes that are no file, such as headers, of which a server can send any number. Beyond these there may be as many as
# have come of the file
MOST_BESIDE = 1 << 16


class Paced(io.RawIOBase):
    """What a server sends, as long as it is fast enough, and not much more than is expected.

    Args:
        raw: where it comes from.
    """

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self.raw = raw
        # bytes, and seconds of waiting for them, since the pace was looked at
        self.count, self.waited = 0, 0.0
        self.room = MOST_BESIDE  # for bytes to come

    def readable(self) -> bool:
        """True."""
        return True

    def expect(self, count: int) -> None:
        """Lets so many more bytes come."""
        self.room += count

    def readinto(self, buffer: Any) -> int | None:
        """As of any stream.

        Raises:
            OSError: if the server is too slow, or sends too much that is no file.
        """
        began = time.monotonic()
        count: int | None = self.raw.readinto(buffer)
        self.waited += time.monotonic() - began
        self.count += count or 0
        self.room -= count or 0
        if self.waited > PATIENCE:
            if self.count < SLOWEST * self.waited:
                raise OSError(f"the server sent {self.count} bytes in {self.waited:.0f} seconds")
            self.count, self.waited = 0, 0.0
        if self.room < 0:
            raise OSError(f"the server sent more than {MOST_BESIDE >> 10} kB that are no file")
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

    def read1(self, n: int = -1) -> bytes:
        """As of any stream."""
        self.paced.expect(max(n, 0))
        data = super().read1(n)
        # what came of the file, and as much beside it
        self.paced.expect(2 * len(data) - max(n, 0))
        return data


class PacedConnection(HTTPConnection):
    """Without encryption, which :func:`~cond_detr.download.check_address` allows on this machine alone."""

    response_class = PacedResponse


class PacedSafeConnection(HTTPSConnection):
    """With encryption."""

    response_class = PacedResponse


class PacedHandler(HTTPHandler, HTTPSHandler):
    """Opens connections whose servers must be fast enough."""

    def __init__(self) -> None:
        super().__init__()
        self.context = ssl.create_default_context()

    def http_open(self, req: Request) -> Any:
        """Asks without encryption."""
        return self.do_open(PacedConnection, req)

    def https_open(self, req: Request) -> Any:
        """Asks with encryption."""
        return self.do_open(PacedSafeConnection, req, context=self.context)

"""Messages between two processes, over a socket: each an 8-byte length and a pickle."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

LONGEST = 64 * 2**20
"""Of a message that comes from users' code."""
_HEADER = struct.Struct("!Q")
_CHUNK = 2**18


def frame(message: object) -> bytes:
    """Bytes on the socket."""
    payload = pickle.dumps(message)
    return _HEADER.pack(len(payload)) + payload


def unframe(inbox: bytearray) -> Any:
    """The first message of the bytes read so far, taken out of them; None where it is not all there."""
    if len(inbox) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack_from(inbox)
    end = _HEADER.size + length
    if len(inbox) < end:
        return None
    message = pickle.loads(bytes(inbox[_HEADER.size : end]))
    del inbox[:end]
    return message


def receive(link: socket.socket, inbox: bytearray) -> Any:
    """The next message, waited for; None where the other side has gone."""
    while (message := unframe(inbox)) is None:
        chunk = link.recv(2**20)
        if not chunk:
            return None
        inbox += chunk
    return message


class Channel:
    """The parent's end of a socket to users' code: it never waits on what does not read or write."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.link.setblocking(False)
        self.hung_up = False
        """The other end is closed, or what came from it is no message."""
        self._inbox = bytearray()
        self._outbox = bytearray()

    def post(self, message: object) -> None:
        """Send as much as goes now; the rest with `flush`, while `unsent`."""
        self._outbox += frame(message)
        self.flush()

    @property
    def unsent(self) -> bool:
        return bool(self._outbox)

    def flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: self.link.send(self._outbox[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            self.hung_up = True
            self._outbox.clear()

    def read(self) -> None:
        """Take what lies on the socket."""
        for _ in range(64):
            try:
                chunk = self.link.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            self._inbox += chunk
            if not chunk:
                self.hung_up = True
                return

    def messages(self) -> Iterator[Any]:
        """What it has said."""
        while True:
            try:
                message = unframe(self._inbox)
            except Exception:  # whatever a broken pickle raises
                self.hung_up = True
                return
            if message is None:
                self.hung_up |= len(self._inbox) > 2 * LONGEST
                return
            yield message

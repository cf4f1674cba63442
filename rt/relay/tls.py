"""TLS, and a word of explanation for those who come without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

_HANDSHAKE = b"\x16"  # the first byte of TLS (RFC 8446, 5.1); no HTTP request begins with it
_TEXT = b"this port speaks TLS; use https:// or wss://\n"
PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_TEXT), _TEXT)


def context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """None without a certificate. ValueError with one line when the files cannot be used."""
    if certificate is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as e:
        raise ValueError(f"the certificate {certificate} and its key cannot be used: {e}") from None
    return made


class TlsFirst(asyncio.Protocol):
    """What a connection meets on a port with TLS. Who begins with a TLS handshake gets one, and goes on to `inner`; plain HTTP is told why not.

    The first byte is looked at without taking it. The transport would take it (uvloop reads what is there as soon as `connection_made` returns, paused or
    not), so the connection goes on in a socket of its own. ended: called if `inner` never got the connection.
    """

    def __init__(self, inner: asyncio.Protocol, tls: ssl.SSLContext, timeout_s: float, ended: Callable[[], None]) -> None:
        self._inner, self._tls, self._timeout_s, self._ended = inner, tls, timeout_s, ended
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._socket.setblocking(False)
        transport.abort()  # closes its own descriptor; the connection lives on in ours
        self._timer = self._loop.call_later(self._timeout_s, self._close)
        self._loop.add_reader(self._socket.fileno(), self._peek)

    def _peek(self) -> None:
        try:
            first = self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        if first == _HANDSHAKE:
            self._timer.cancel()
            self._loop.remove_reader(self._socket.fileno())
            self._task = self._loop.create_task(self._encrypt())
            return
        with contextlib.suppress(OSError):
            self._socket.recv(1 << 16)  # what is closed unread is reset, and the answer with it
            self._socket.send(PLAIN_HTTP)
        self._close()

    async def _encrypt(self) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._inner, self._socket, ssl=self._tls, ssl_handshake_timeout=self._timeout_s)
        except OSError:  # no TLS after all, or gone
            self._socket.close()
            self._ended()

    def _close(self) -> None:
        """Nobody for `inner`."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._ended()

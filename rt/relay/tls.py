"""TLS, and a word of explanation for those who come without it."""

from __future__ import annotations

import asyncio
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

    The first byte is looked at without taking it, so reading rests until then. ended: called if `inner` never got the connection.
    """

    def __init__(self, inner: asyncio.Protocol, tls: ssl.SSLContext, timeout_s: float, ended: Callable[[], None]) -> None:
        self._inner, self._tls, self._timeout_s, self._ended = inner, tls, timeout_s, ended
        self._loop = asyncio.get_running_loop()
        self._early = b""  # decrypted before `inner` was there
        self._over = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._look = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._timer = self._loop.call_later(self._timeout_s, transport.abort)
        self._loop.add_reader(self._look.fileno(), self._peek)

    def _peek(self) -> None:
        try:
            first = self._look.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        self._rest()
        if first == _HANDSHAKE:
            self._task = self._loop.create_task(self._encrypt())
        else:
            self._transport.resume_reading()

    def _rest(self) -> None:
        if self._look.fileno() >= 0:
            self._loop.remove_reader(self._look.fileno())
            self._look.close()

    async def _encrypt(self) -> None:
        try:
            secure = await self._loop.start_tls(self._transport, self, self._tls, server_side=True, ssl_handshake_timeout=self._timeout_s)
        except OSError:  # no TLS after all, or gone
            secure = None
        self._timer.cancel()
        if secure is None or secure.is_closing():
            self._transport.abort()
            self._end()
            return
        self._inner.connection_made(secure)
        secure.set_protocol(self._inner)
        if self._early:
            self._inner.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        if self._task:
            self._early += data
        else:
            self._transport.write(PLAIN_HTTP)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._rest()
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ended()

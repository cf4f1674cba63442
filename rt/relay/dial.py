"""How a client gets to a relay: the connection, the first message, and one line for whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from ..files import InputError

OPEN_S, READY_S = 5.0, 10.0
AWAY = ("busy", "draining", "internal")  # errors of the relay, not of what was sent
_FINAL = (1000, 1002, 1003, 1007, 1008, 1009)  # close codes that coming again would not change


class RelayError(InputError):
    """The relay refused, failed or went away; the message is one line."""


class Away(RelayError):
    """The relay is not there, or not for us, just now."""


class Busy(Away):
    """The relay takes nobody just now."""


async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
    """RelayError; Away where another try may succeed."""
    try:
        return await connect(
            url, additional_headers=headers, compression=None, max_size=None, max_queue=64, proxy=None, ping_interval=None, open_timeout=OPEN_S,
            close_timeout=1,
        )  # fmt: skip
    except InvalidStatus as e:
        said = " ".join((e.response.body or b"").decode(errors="replace").split())
        kind = Busy if e.response.status_code == 503 else Away if e.response.status_code >= 500 else RelayError
        raise kind(f"{url} refused: {said[:200] or e}") from None
    except InvalidURI:
        raise RelayError(f"{url} is not an address like ws://host:8765") from None
    except ssl.SSLCertVerificationError as e:
        raise RelayError(f"the certificate of {url} is not trusted ({e.verify_message}); if it is your own: SSL_CERT_FILE=its.pem") from None
    except ssl.SSLError:
        raise RelayError(f"{url} speaks no TLS; if it is to be without: ws:// instead of wss://") from None
    except (OSError, EOFError, InvalidHandshake, TimeoutError) as e:
        raise Away(f"no relay at {url} ({' '.join(str(e).split()) or 'no answer'}); start one: voicewire serve") from None


async def begin(socket: ClientConnection, start: dict[str, Any], url: str) -> dict[str, Any]:
    """Send `start`; → `ready`. RelayError; Away where another try may succeed."""
    try:
        await socket.send(json.dumps(start))
        while True:
            message = await asyncio.wait_for(socket.recv(), READY_S)
            answer: dict[str, Any] = json.loads(message) if isinstance(message, str) else {}
            if answer.get("event") == "error":
                code = answer.get("code")
                raise (Busy if code == "busy" else Away if code in AWAY else RelayError)(f"the relay refused: {answer.get('text')}")
            if answer.get("event") == "ready":
                return answer
    except ConnectionClosed as e:
        raise Away(ended(url, reason(e))) from None
    except TimeoutError:
        raise Away(f"the relay at {url} took the connection and said nothing for {READY_S:.0f} s") from None


def ended(url: str, why: str) -> str:
    return f"the relay at {url} ended the stream: {why or 'no reason given'}"


def reason(e: ConnectionClosed) -> str:
    return e.rcvd.reason if e.rcvd else "the connection broke"


def final(e: ConnectionClosed) -> bool:
    """Coming again would not help."""
    return e.rcvd is not None and e.rcvd.code in _FINAL

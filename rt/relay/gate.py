"""Who may come in: what an HTTP request gets before it becomes a WebSocket. Every refusal is one line that says why."""

from __future__ import annotations

import hmac
import http
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from . import page_files
from .metrics import CONTENT_TYPE
from .tickets import valid

WHERE = "/v1/where"  # → {"url": …}: where a stream is to be opened
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Door:
    """token: what clients must show, None: nothing. origins: web pages from elsewhere that may connect, like https://example.org.
    local: the server listens on this machine only, so names other than this machine's are somebody's trick (DNS rebinding).
    tickets: the secret of a front door whose tickets (tickets.py) stand for token and origin."""

    token: str | None = None
    origins: tuple[str, ...] = ()
    local: bool = True
    tickets: bytes | None = None


def answer(status: int, text: str, **headers: str) -> Response:
    """A plain text response; header names with _ for -."""
    return respond(status, "text/plain; charset=utf-8", (text + "\n").encode(), {k.replace("_", "-"): v for k, v in headers.items()})


def respond(status: int, kind: str, body: bytes, headers: dict[str, str]) -> Response:
    all_headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **headers})
    return Response(status, http.HTTPStatus(status).phrase, all_headers, body)


def _host(headers: Headers) -> str:
    return headers.get("Host", "")


def _shown(request: Request) -> str:
    """The token a client shows: `Authorization: Bearer`, or `?token=` for browsers, which cannot set headers."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return _ask(request, "token")


def _ask(request: Request, key: str) -> str:
    """A parameter of the address, "" if it is not there."""
    return (parse_qs(urlsplit(request.path).query).get(key) or [""])[0]


def _stranger(door: Door, headers: Headers) -> str:
    """Why a web page or a host name is refused, "" if it is not."""
    host, origin = _host(headers), headers.get("Origin")
    names = (*LOOPBACK, *(urlsplit(o).hostname for o in door.origins))
    if door.local and host and (urlsplit(f"//{host}").hostname or "") not in names:
        return f"host {host!r} is not this machine; start the server with --host to serve others, or --origin for a proxy's name"
    if origin is not None and origin not in door.origins and urlsplit(origin).netloc.lower() != host.lower():
        return f"origin {origin!r} may not connect; start the server with --origin {origin}"
    return ""


class Gate:
    """Answers HTTP; lets WebSockets through. state() → "" when ready, else why not; room(moving) → seconds to come
    back after, 0 when there is room. elsewhere(path) → where the streams of that path are, if not here, with a query: clients are sent there.
    voices: the fingerprint of weights that know voices, queries: whether they take any, talkers: how many they tell apart, converts: the
    fingerprint of voiceprints to speak as, for the page."""

    def __init__(
        self, door: Door, paths: Collection[str], *, state: Callable[[], str], room: Callable[[bool], float], metrics: Callable[[], bytes],
        refused: Callable[[str], None], elsewhere: Callable[[str], str] | None = None, voices: str | None = None, queries: bool = False, talkers: int = 0,
        converts: str | None = None,
    ) -> None:  # fmt: skip
        self._door, self._paths = door, paths
        self._state, self._room, self._metrics, self._refused = state, room, metrics, refused
        self._elsewhere = elsewhere
        self._page = page_files.load(voices, queries, talkers, converts)

    def check(self, request: Request) -> Response | None:
        """A response, or None: go on with the WebSocket handshake."""
        try:
            path = urlsplit(request.path).path
            reason, response = self._check(path, request)
        except ValueError:  # Host, Origin or path that is none
            reason, response = "bad_request", answer(400, "this request cannot be read")
        if reason:
            self._refused(reason)
        return response

    def _check(self, path: str, request: Request) -> tuple[str, Response | None]:
        if path == "/healthz":
            return "", answer(200, "alive")
        if path == "/readyz":
            why = self._state()
            return "", answer(503, why, Retry_After="5") if why else answer(200, "ready")
        ticket = valid(self._door.tickets, _ask(request, "ticket"))
        if not ticket and (why := _stranger(self._door, request.headers)):
            return "origin", answer(403, why)
        if path == "/metrics":
            if not self._known(request):
                return "token", self._no_token()
            return "", respond(200, CONTENT_TYPE, self._metrics(), {})
        if path in self._page:
            kind, body = self._page[path]
            host = _host(request.headers)
            sockets = "ws: wss:" if self._elsewhere else f"ws://{host} wss://{host}"
            return "", respond(200, kind, body, {k: v.format(sockets=sockets) for k, v in page_files.HEADERS.items()})
        wanted = _ask(request, "path") or "/v1/stream" if path == WHERE else path
        if wanted not in self._paths:
            return "path", answer(404, f"nothing here; streams are at: {', '.join(sorted(self._paths))}")
        if path != WHERE and request.headers.get("Upgrade", "").lower() != "websocket":
            return "http", answer(426, f"{path} speaks WebSocket, not plain HTTP; use ws:// or wss://", Upgrade="websocket", Connection="Upgrade, close")
        if not ticket and not self._known(request):
            return "token", self._no_token()
        if why := self._state():
            return "draining", answer(503, why, Retry_After="1")
        moving = "move" in parse_qs(urlsplit(request.path).query, keep_blank_values=True)
        if wait := self._room(moving):
            return "busy", answer(503, "all streams are taken, or this machine is too busy; come back later, or start more workers", Retry_After=f"{wait:.0f}")
        url = self._elsewhere(wanted) + "&move" * moving if self._elsewhere else wanted
        if path == WHERE:
            return "", respond(200, "application/json", json.dumps({"url": url}).encode(), {"Cache-Control": "no-store"})
        return "", answer(307, url, Location=url) if self._elsewhere else None

    def _known(self, request: Request) -> bool:
        return self._door.token is None or hmac.compare_digest(_shown(request).encode(), self._door.token.encode())

    def _no_token(self) -> Response:
        return answer(401, "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN' or ?token=TOKEN", WWW_Authenticate="Bearer")

"""The browser page: the files of the folder `page` beside this one, read once, so that nothing else can be asked for."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Final

TYPES: Final = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
    ".png": "image/png", ".ico": "image/x-icon", ".json": "application/json", ".webmanifest": "application/manifest+json", ".woff2": "font/woff2",
}  # fmt: skip

# Nothing from elsewhere, nothing inline; the microphone for this page only. blob: is what recordings are played from.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self' {sockets}; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def load(voices: str | None, queries: bool, talkers: int, converts: str | None) -> dict[str, tuple[str, bytes]]:
    """→ {path: (content type, body)}; `/` is index.html, `/server.json` what the page must know beforehand. Empty where the page is not installed.

    voices: fingerprint of the server's weights, None where they know no voices. queries: whether they take any. talkers: how many they tell apart.
    converts: fingerprint of the voiceprints to speak as, None where it converts no voices.
    """
    folder = files("voicewire.rt.relay") / "page"
    found: dict[str, tuple[str, bytes]] = {}
    if folder.is_dir():
        for f in folder.iterdir():
            ending = f.name[f.name.rfind(".") :]
            if f.is_file() and ending in TYPES:
                found[f"/{f.name}"] = (TYPES[ending], f.read_bytes())
    if "/index.html" in found:
        found["/"] = found["/index.html"]
        found["/server.json"] = (TYPES[".json"], json.dumps({"voices": voices, "queries": queries, "talkers": talkers, "converts": converts}).encode())
    return found

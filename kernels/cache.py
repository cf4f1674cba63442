"""Cubins on disk, by hash of everything that decides them. A file that is cut short, changed or not ours is built again, never loaded.

Lies in `$XDG_CACHE_HOME/voicewire/kernels` (`~/.cache/…`), one file a source and architecture: SHA-256 of key and cubin, then the cubin.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from . import build

DIGEST_BYTES = 32


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voicewire" / "kernels"


def key(text: bytes, arch: str) -> bytes:
    """Hash of source, headers, compiler version, architecture and options."""
    digest = hashlib.sha256()
    header_parts = (part for name, content in build.headers().items() for part in (name.encode(), content))
    for part in (text, *header_parts, build.compiler().encode(), arch.encode(), *(o.encode() for o in build.OPTIONS)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def load(path: Path, digest: bytes) -> bytes | None:
    """The cubin kept under this key, or None where there is none that can be trusted."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    content = kept[DIGEST_BYTES:]
    return content if content and kept[:DIGEST_BYTES] == hashlib.sha256(digest + content).digest() else None


def store(path: Path, digest: bytes, content: bytes) -> None:
    """Write whole or not at all; a disk that cannot be written only costs the next start its compile time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            whole = Path(place) / path.name
            whole.write_bytes(hashlib.sha256(digest + content).digest() + content)
            os.replace(whole, path)
    except OSError:
        return


def cubin(source: str, arch: str) -> bytes:
    """source: a file of this folder, arch: `sm_90`, … → its cubin, kept or built. KernelError without NVRTC or for an unknown arch."""
    text = (build.FOLDER / source).read_bytes()
    digest = key(text, arch)
    path = folder() / f"{Path(source).stem}-{arch}-{digest.hex()[:16]}.cubin"
    kept = load(path, digest)
    if kept is None:
        kept, _ = build.compile_source(source, text, arch)
        store(path, digest, kept)
    return kept

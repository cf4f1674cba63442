"""What one client, and all of them together, may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on a session.

    message_bytes: a longer message ends the connection (1009). messages_per_s: what comes faster is read more slowly, after a burst of
    two seconds' worth. inside_s: audio being processed for one client; beyond it the server stops reading from that client.
    write_bytes: bytes waiting for a slow reader before it is skipped (`live`) or no longer read from. errors: refused messages before
    the connection ends. start_timeout_s, idle_timeout_s: without `start`, without audio. session_s: longest session, None: any.
    ping_s, pong_s: a client is asked so often whether it is still there, and has so long to answer, or to send anything at all: a network that vanished
    without a word keeps its slot for some 10 s. Less would end streams that TCP was about to save, whose fifth try comes after 6 s.
    drain_s: how long streams may go on after SIGTERM. late_frames: so many late ones in five seconds, and nobody is admitted for a while.
    handshakes: connections that have not started a stream.
    """

    message_bytes: int = 1 << 18
    messages_per_s: float = 1000.0
    inside_s: float = 1.0
    write_bytes: int = 1 << 16
    errors: int = 20
    start_timeout_s: float = 5.0
    idle_timeout_s: float = 60.0
    ping_s: float = 3.0
    pong_s: float = 7.0
    session_s: float | None = None
    drain_s: float = 30.0
    late_frames: int = 10
    handshakes: int = 64

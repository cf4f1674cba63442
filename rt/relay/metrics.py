"""What `/metrics` shows, through prometheus-client. With several workers PROMETHEUS_MULTIPROC_DIR adds them up."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from voicewire.engines.engine import Engine

from .session import Session, Tally
from .slots import StepTime

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.010, 0.012, 0.014, 0.017, 0.020, 0.03, 0.05, 0.1, 0.5)


class Metrics:
    """One a process. Sessions are counted once a second and when they end, not message by message."""

    def __init__(self) -> None:
        r = self._registry = CollectorRegistry()
        self.streams = Gauge("voicewire_streams", "Streams now", registry=r, multiprocess_mode="livesum")
        self.capacity = Gauge("voicewire_streams_max", "Streams this server admits, if none converts", registry=r, multiprocess_mode="livesum")
        self.converting = Gauge("voicewire_converting_streams", "Of them, streams that convert a voice", registry=r, multiprocess_mode="livesum")
        self.converting_capacity = Gauge(
            "voicewire_converting_streams_max", "Streams that convert it admits, if there are no others", registry=r, multiprocess_mode="livesum"
        )
        self.draining = Gauge("voicewire_draining", "1 while the server is being emptied", registry=r, multiprocess_mode="livemax")
        self.started = Counter("voicewire_streams_started_total", "Streams admitted", registry=r)
        self.refused = Counter("voicewire_refused_total", "Connections and streams refused", ["reason"], registry=r)
        self.errors = Counter("voicewire_protocol_errors_total", "Protocol errors", ["code"], registry=r)
        self.audio_in = Counter("voicewire_audio_in_seconds_total", "Audio received", registry=r)
        self.audio_out = Counter("voicewire_audio_out_seconds_total", "Audio sent", registry=r)
        self.skipped = Counter("voicewire_audio_skipped_seconds_total", "Audio that slow readers missed", registry=r)
        self.step = Histogram("voicewire_step_seconds", "Time of a batched step", registry=r, buckets=_BUCKETS)
        self.wait = Histogram("voicewire_frame_seconds", "From a frame's arrival to the end of its step, the oldest of a batch", registry=r, buckets=_BUCKETS)
        self.batch = Histogram("voicewire_batch_streams", "Streams stepped together", registry=r, buckets=(1, 2, 4, 8, 12, 16, 24, 32, 64, 128))
        self.late = Counter("voicewire_late_frames_total", "Batches whose oldest frame took longer than a frame", registry=r)
        self.engine = Gauge(
            "voicewire_engine_info", "What steps: 1 now, 0 before; why: what was tried first, or lost", ["engine", "how", "why"], registry=r,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._engine: tuple[str, str, str] | None = None
        self._seen: dict[str, Tally] = {}

    def steps_on(self, engine: Engine) -> bool:
        """Show what steps now; → whether that is news."""
        now = (engine.name, str(getattr(engine, "how", engine.name)), "; ".join(getattr(engine, "why", ())))
        if now == self._engine:
            return False
        if self._engine:
            self.engine.labels(*self._engine).set(0)
        self.engine.labels(*now).set(1)
        self._engine = now
        return True

    def stepped(self, t: StepTime) -> None:
        self.step.observe(t.step_s)
        self.wait.observe(t.oldest_s)
        self.batch.observe(t.slots)

    def begin(self, session: Session) -> None:
        """A stream was admitted; what it did on another worker was counted there."""
        self.started.inc()
        self._seen[session.name] = Tally(**vars(session.tally))

    def count(self, session: Session, ended: bool = False) -> None:
        """Add what a session did since it was counted last."""
        before, now, rate = self._seen.pop(session.name, Tally()), session.tally, session.start.rate
        self.audio_in.inc(max(0, now.samples_in - before.samples_in) / rate)
        self.audio_out.inc(max(0, now.samples_out - before.samples_out) / rate)
        self.skipped.inc(max(0, now.skipped_samples - before.skipped_samples) / rate)
        if not ended:
            self._seen[session.name] = Tally(**vars(now))

    def text(self) -> bytes:
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)

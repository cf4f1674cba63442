"""`Stream`: audio in blocks of any size, speech out, the same number of samples, a fixed delay later."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.config import HOPS_PER_FRAME, TASKS
from voicewire.engines.engine import Engine, copy_state, open_engine
from voicewire.engines.stft import analyse, hop_samples, latency_samples, synthesise

F32 = NDArray[np.float32]
Samples = NDArray[np.generic]
ChannelMode = Literal["mix", "each"]

LIVE_TASKS = ("restore",)
_SNAPSHOT = 1  # format of `snapshot`


class Stream:
    """One live stream through the model.

        stream = Stream(48000)
        for block in microphone:                 # float32 or int16, [n] or [n, channels], any n
            speaker.write(stream.process(block)) # same shape and type, `latency_samples` later
        rest = stream.flush()                    # what is still inside

    rate: 8,000 to 48,000 Hz. channels: how many `process` gets. mode: "mix" treats them as one (output repeated on each),
    "each" runs every channel by itself. strength_db: the most that may be taken away (None: no limit, 0: nothing).
    bypass: the input itself, with the same delay. Both may be set at any time; the change is cross-faded over one hop.

    Thread-safe: every method may be called from any thread; calls are serialised by a lock. NaN and infinities in the input are
    replaced by silence and counted in `repaired_samples`. ValueError, with one line, for what cannot be processed.
    """

    def __init__(
        self,
        rate: int,
        channels: int = 1,
        *,
        task: str = "restore",
        mode: ChannelMode = "mix",
        strength_db: float | None = None,
        bypass: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self._hop = hop_samples(rate)
        if channels < 1:
            raise ValueError(f"channels must be at least 1, not {channels}")
        if task not in LIVE_TASKS:
            known = "is planned, not built" if task in TASKS else "is unknown"
            raise ValueError(f"task '{task}' {known}; there is: {', '.join(LIVE_TASKS)}")
        if mode not in ("mix", "each"):
            raise ValueError(f"channel mode '{mode}' is unknown; there are: mix, each")
        self.rate, self.channels, self.task, self.mode = rate, channels, task, mode
        self.strength_db, self.bypass = strength_db, bypass
        self.engine: Engine = engine or open_engine()
        self.latency_samples = latency_samples(rate)
        self.frame_samples = HOPS_PER_FRAME * self._hop
        self._lock = threading.RLock()
        self._slots = 1 if mode == "mix" else channels
        self.reset()

    @property
    def latency_ms(self) -> float:
        return 1e3 * self.latency_samples / self.rate

    @property
    def strength_db(self) -> float | None:
        return self._strength_db

    @strength_db.setter
    def strength_db(self, value: float | None) -> None:
        if value is not None and not value >= 0:
            raise ValueError(f"strength must be 0 dB (change nothing) or more, not {value}")
        self._strength_db = None if value is None else float(value)

    def reset(self) -> None:
        """As freshly made: forget the past and all that is inside."""
        with self._lock:
            self._state = self.engine.init_state(self._slots, self.task)
            self._tail = np.zeros((self._slots, self._hop), np.float32)
            self._overlap = np.zeros((self._slots, self._hop), np.float32)
            self._in = np.zeros((self._slots, 0), np.float32)
            # one frame is collected before the first step, whose output is one hop older than its input
            self._out = np.zeros((self._slots, self.frame_samples), np.float32)
            self._dry = self._dry_share()
            self.frames = 0
            self.repaired_samples = 0
            self.step_seconds: list[float] | None = None

    def time_steps(self) -> list[float]:
        """Start collecting the seconds every step takes; returns the list that grows."""
        with self._lock:
            self.step_seconds = []
            return self.step_seconds

    def process(self, block: Samples) -> Samples:
        """block: [n] or [n, channels], float32 (full scale 1.0) or int16 → same shape and type."""
        x = np.asarray(block)
        if x.ndim not in (1, 2) or (x.ndim == 1 and self.channels != 1) or (x.ndim == 2 and x.shape[1] != self.channels):
            raise ValueError(f"block of shape {x.shape} does not fit a stream of {self.channels} channel(s): give [n, channels]")
        with self._lock:
            y = self._push(self._to_slots(x))
        return self._from_slots(y, x)

    def flush(self) -> Samples:
        """The last `latency_samples` of output, float32; the stream is reset afterwards and may be used again.

        Shape [latency_samples] for one channel, else [latency_samples, channels].
        """
        shape = (self.latency_samples,) if self.channels == 1 else (self.latency_samples, self.channels)
        with self._lock:
            rest = self.process(np.zeros(shape, np.float32))
            self.reset()
        return rest

    # -- inside --------------------------------------------------------------------------------------------------------
    def _to_slots(self, x: Samples) -> F32:
        if x.dtype == np.int16:
            y = x.astype(np.float32) / 32768
        elif np.issubdtype(x.dtype, np.floating):
            y = x.astype(np.float32)
            bad = ~np.isfinite(y)
            if bad.any():
                self.repaired_samples += int(bad.sum())
                y = np.where(bad, np.float32(0), y)
        else:
            raise ValueError(f"samples of type {x.dtype} are not supported; give float32 or int16")
        # beyond +-1,000 times full scale is no sound: keep the arithmetic finite
        y = np.clip(y, -1e3, 1e3).reshape(len(y), self.channels).T
        return y.mean(0, keepdims=True) if self.mode == "mix" else np.ascontiguousarray(y)

    def _from_slots(self, y: F32, like: Samples) -> Samples:
        z = np.repeat(y, self.channels, 0) if self.mode == "mix" else y
        z = z.T.reshape(like.shape)
        if like.dtype == np.int16:
            return np.clip(np.round(z * 32768), -32768, 32767).astype(np.int16)
        return z.astype(like.dtype)

    def _dry_share(self) -> float:
        if self.bypass:
            return 1.0
        return 0.0 if self._strength_db is None else float(10 ** (-self._strength_db / 20))

    def _push(self, x: F32) -> F32:
        n = x.shape[1]
        self._in = np.concatenate([self._in, x], 1) if self._in.shape[1] else x
        done = [self._out]
        at = 0
        while self._in.shape[1] - at >= self.frame_samples:
            done.append(self._step(self._in[:, at : at + self.frame_samples]))
            at += self.frame_samples
        self._in = self._in[:, at:].copy()
        out = np.concatenate(done, 1) if len(done) > 1 else self._out
        self._out = out[:, n:].copy()
        return out[:, :n]

    def _step(self, frame: F32) -> F32:
        started = time.perf_counter()
        spec, self._tail = analyse(self._tail, frame)
        speech, self._state = self.engine.advance(np.ascontiguousarray(spec[:, :, :-1]), self._state)
        clean = np.pad(speech, ((0, 0), (0, 0), (0, 1), (0, 0)))  # 24 kHz itself is nobody's speech
        dry = self._dry_share()
        if dry or self._dry:  # a new share starts with this frame; overlapping windows make the cross-fade
            clean = clean + np.float32(dry) * (spec - clean)
        self._dry = dry
        y, self._overlap = synthesise(self._overlap, clean)
        self.frames += 1
        if self.step_seconds is not None:
            self.step_seconds.append(time.perf_counter() - started)
        return y

    # -- moving a stream -----------------------------------------------------------------------------------------------
    def snapshot(self) -> bytes:
        """Everything the stream remembers; `restore` on a stream of the same shape continues bit for bit."""
        with self._lock:
            arrays = {f"state:{k}": v for k, v in self._state.items()}
            arrays |= {"tail": self._tail, "overlap": self._overlap, "in": self._in, "out": self._out}
            counters = {"frames": self.frames, "repaired_samples": self.repaired_samples, "dry": self._dry}
            arrays["head"] = np.frombuffer(json.dumps(self._head() | counters).encode(), np.uint8)
            file = io.BytesIO()
            np.savez(file, **arrays)  # type: ignore[arg-type]
            return file.getvalue()

    def _head(self) -> dict[str, Any]:
        return {
            "snapshot": _SNAPSHOT, "weights": self.engine.weights, "rate": self.rate, "channels": self.channels,
            "task": self.task, "mode": self.mode,
        }  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Continue from a `snapshot`. ValueError if it is damaged or of another kind of stream; the stream is then unchanged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as f:
                arrays = {k: f[k] for k in f.files}
            head = json.loads(arrays.pop("head").tobytes())
        except Exception:
            raise ValueError("this is not a voicewire snapshot, or it is damaged") from None
        for key, mine in self._head().items():
            if head.get(key) != mine:
                raise ValueError(f"the snapshot is of a stream with {key} {head.get(key)}, this one has {mine}")
        with self._lock:
            state = {k.removeprefix("state:"): v for k, v in arrays.items() if k.startswith("state:")}
            if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in self._state.items()}:
                raise ValueError("the snapshot's state does not fit this engine")
            self._state = copy_state({k: state[k] for k in self._state})
            self._tail, self._overlap, self._in, self._out = (arrays[k] for k in ("tail", "overlap", "in", "out"))
            self.frames, self.repaired_samples, self._dry = head["frames"], head["repaired_samples"], head["dry"]

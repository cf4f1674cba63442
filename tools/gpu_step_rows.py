"""Rows of `tools.gpu_check` about the whole step: samples in, samples out, one graph, many streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .gpu_rows import Found, held, opened, opened_any

RATES = (8000, 16000, 16000, 16000, 44100, 48000)
STEPS = 80


def samples(way: str) -> Found:
    """Streams of samples come, go and move between rows over all batch sizes to 16, each beside itself on the CPU with the STFT in NumPy: 16 kHz and
    other rates, int16 and float32, any share of the input kept. Bar: 1e-4, and one step of int16."""
    import numpy as np

    from tools.precision import recording
    from voicewire.engines import open_engine
    from voicewire.engines.gpu.pcm_slots import DevicePcmSlots
    from voicewire.engines.pcm_slots import HostPcmSlots
    from voicewire.engines.slots import HostSlots
    from voicewire.engines.stft import hop_samples

    engine, rng, sound = opened(way, "fp32"), np.random.default_rng(4), recording(20).reshape(-1)
    slots, host = engine.pcm_slots(16), HostPcmSlots(HostSlots(open_engine(), 16), 16)
    if not isinstance(slots, DevicePcmSlots):
        return held(False, f"the STFT stays on the host: {engine.host_stft}")
    hops, whole, worst, frames, moved = np.zeros(16, int), np.zeros(16, bool), 0.0, 0, 0
    for _ in range(STEPS):
        here = int(2 ** rng.integers(0, 5))
        for row in range(here):
            if not hops[row] or rng.random() < 0.03:  # somebody else
                hops[row], whole[row] = hop_samples(int(rng.choice(RATES))), rng.random() < 0.5
                for each in (slots, host):
                    each.attach(row, int(hops[row]), whole=bool(whole[row]))
        if here > 1 and rng.random() < 0.3:  # one goes on in another row
            a, b = (int(i) for i in rng.permutation(here)[:2])
            for each in (slots, host):
                each.attach(b, int(hops[a]), luggage=each.export(a), whole=bool(whole[a]))
            hops[b], whole[b], moved = hops[a], whole[a], moved + 1
        rows = np.flatnonzero(rng.random(here) < 0.7)
        if not len(rows):
            continue
        given: list[Any] = []
        for row in rows:
            at = int(rng.integers(len(sound) - 960))
            frame = sound[at : at + 2 * hops[row]]
            given.append(np.rint(32767 * frame).astype(np.int16) if whole[row] else frame)
        dry = rng.choice([0, 0.05, 1], len(rows)).astype(np.float32)
        for row, y, want in zip(rows, slots.step(rows, given, dry), host.step(rows, given, dry), strict=True):
            wrong = float(np.abs(y.astype(np.float32) - want.astype(np.float32)).max()) / (32768 if whole[row] else 1)
            worst, frames = max(worst, wrong - (1 / 32768 if whole[row] else 0)), frames + 1
    if engine.lost:
        return held(False, f"the device was lost: {engine.lost}")
    return held(worst <= 1e-4, f"{slots.how}: largest error {worst:.1e} over {frames} frames of 16 rows, {moved} moves (bar 1e-4)", error=worst)


def replay(graph: str, plain: str) -> Found:
    """One precision, one batch size, with and without graph: the same bits, state and edges included."""
    import numpy as np

    from voicewire.engines.gpu.verify import noise_pcm

    x, dry, results, how = noise_pcm(4, 60), np.full(4, 0.05, np.float32), [], []
    for way in (graph, plain):
        engine = opened(way, "fp16")
        slots = engine.pcm_slots(4)
        for row in range(4):
            slots.attach(row, 160, whole=row > 1)
        ys = [y for t in range(x.shape[1]) for y in slots.step(np.arange(4), list(x[:, t]), dry)]
        if engine.lost or engine.host_stft:
            return held(False, f"the device was lost: {engine.lost}" if engine.lost else f"the STFT stays on the host: {engine.host_stft}")
        how.append(slots.how)
        luggage = [slots.export(row) for row in range(4)]
        results.append([*ys, *(v for kept in luggage for v in (*kept.state.values(), kept.tail, kept.overlap))])
        slots.close()
    if "one graph" not in how[0]:
        return held(False, f"no graph: {how[0]}")
    same = all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    return held(same, f"{'bit-equal' if same else 'DIFFERENT BITS'} over {x.shape[1]} frames of 4 streams: {how[0]} / {how[1]}")


def lost() -> Found:
    """The device fails after 20 of 40 frames (simulated): the CPU goes on with the same frame, overlap and all."""
    import numpy as np

    from voicewire.engines import open_engine
    from voicewire.engines.gpu.device import DeviceLost
    from voicewire.engines.gpu.verify import noise_pcm
    from voicewire.engines.pcm_slots import HostPcmSlots
    from voicewire.engines.slots import HostSlots

    engine, x, dry = opened_any("fp32"), noise_pcm(2, 40), np.full(2, 0.05, np.float32)
    slots, host = engine.pcm_slots(2), HostPcmSlots(HostSlots(open_engine(), 2), 2)
    for row in range(2):
        slots.attach(row, 160)
        host.attach(row, 160)

    def fail(stage: Any) -> Any:
        raise DeviceLost("simulated")

    worst = slowest = 0.0
    for t in range(40):
        if t == 20:
            slots.stepper.wait = fail
        begin = time.perf_counter()
        y = slots.step(np.arange(2), list(x[:, t]), dry)
        slowest = max(slowest, 1e3 * (time.perf_counter() - begin)) if t >= 20 else 0.0
        worst = max(worst, float(np.abs(np.stack(y) - np.stack(host.step(np.arange(2), list(x[:, t]), dry))).max()))
    text = f"no frame missed, error {worst:.1e} (bar 1e-4), slowest frame after it {slowest:.1f} ms (bar 60)"
    return held(bool(engine.lost) and worst <= 1e-4 and slowest < 60, text)


def gil() -> Found:
    """Another Python thread counts while this one waits for a large step."""
    import threading

    import numpy as np

    from voicewire.engines.gpu.verify import noise

    engine, n = opened_any("fp16"), 1024
    slots, x = engine.slots(n), np.resize(noise(8, 1), (n, 2, 480, 2))
    rows, counted, stop = np.arange(n), [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    def rate(seconds: float, work: Callable[[], object]) -> float:
        begin, before = time.perf_counter(), counted[0]
        while time.perf_counter() - begin < seconds:
            work()
        return (counted[0] - before) / (time.perf_counter() - begin)

    slots.step(rows, x)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        alone, beside = rate(1.0, lambda: time.sleep(0.01)), rate(2.0, lambda: slots.collect(slots.submit(rows, x)))
    finally:
        stop.set()
        thread.join()
    share = beside / alone
    return held(share > 0.25, f"another thread ran at {share:.0%} of its speed during steps of {n} streams (bar 25 %)")


def bench(limit_s: float) -> Found:
    """Every way at four numbers of streams, samples in and out; what there is no time for is left out, for `limit_s` ends this."""
    from voicewire.engines.engine import WEIGHTS
    from voicewire.engines.gpu.measure import FRAME_MS, Timing, carried, sweep, variants

    rows: list[Timing] = []
    missing: list[str] = []
    size = (WEIGHTS / "model.onnx").stat().st_size
    for found in sweep(variants(WEIGHTS), (1, 64, 1024, 4096), 2.5, size, deadline=time.monotonic() + limit_s - 50):
        if isinstance(found, Timing):
            rows.append(found)
        else:
            missing.append(found)
    if not rows:
        return "skipped", "; ".join(missing), {}
    best = min((t for t in rows if t.streams == 1), key=lambda t: t.p50_ms)
    most = carried(rows)
    text = f"one stream {best.p50_ms:.3f} ms ({best.variant}; bar 0.5); below a frame ({FRAME_MS:.0f} ms) at p99.9: "
    text += ", ".join(f"{way} {n}" for way, n in most.items())
    largest = {t.variant: t for t in rows if t.host_us}
    text += "; host us a stream and step: " + ", ".join(f"{t.variant} {t.host_us:.1f} of {t.streams}" for t in largest.values() if "graph" in t.variant)
    good = best.p50_ms <= 0.5 and max(most.values()) >= 4000
    return held(good, text, rows=[t.to_dict() for t in rows], missing=missing)


def profile() -> Found:
    """Where the time of a step of 4,096 streams goes, kernel by kernel (PyTorch, eager)."""
    import torch

    from voicewire.engines.gpu.measure import pcm_steps
    from voicewire.engines.pcm_slots import open_pcm_slots

    step = pcm_steps(open_pcm_slots(opened("torch eager", "fp16"), 4096), 4096)
    step(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
        for t in range(5):
            step(t)
    times = sorted(((e.key, e.device_time_total / 5e3) for e in p.key_averages()), key=lambda e: -e[1])[:12]
    return "note", "ms a step: " + ", ".join(f"{name[:40]} {ms:.2f}" for name, ms in times[:5]), {"kernels": times}

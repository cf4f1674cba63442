"""Hours of live audio, shortened: microphone → model → virtual microphone while this very process is kept busy with Python work.

    python -m tools.soak --server pipewire --minutes 30 --report tools/SOAK.md
    python -m tools.soak --server pulseaudio --minutes 10 --clock-ppm 300      # a microphone with a clock of its own
    make soak

A private sound server plays the bundled recording into a simulated microphone without end, another program (parec) records from the virtual
microphone, `Live` runs in this process beside two threads of pure Python and JSON work. Then: delay against a bare copy, the server killed, the
microphone pulled and put back, and how long each took. Needs the Debian packages of `make sound-servers`, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import samplerate
import soundfile as sf
from tqdm import tqdm

from voicewire.rt.files import process
from voicewire.rt.lane import LIVE_STRENGTH_DB
from voicewire.rt.live import Live, LiveSettings
from voicewire.rt.live.latency import measure
from voicewire.rt.stream import Stream

from .metrics import pesq_wb
from .soundserver import KINDS, ClockedMicrophone, SoundServer

OURS = ("starved", "dropped")
RATE = 48000


def busy(ended: threading.Event) -> None:
    """Pure Python work, half of the time."""
    while not ended.wait(0.01):
        until = time.perf_counter() + 0.01
        total = 0
        while time.perf_counter() < until:
            total += sum(i * i for i in range(500))


def parse(ended: threading.Event) -> None:
    """A C function that holds the interpreter's lock for milliseconds."""
    text = json.dumps([{"name": "n" * 20, "value": i} for i in range(5000)])
    while not ended.wait(0.05):
        json.loads(text)


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def page_ins(pid: int) -> int:
    """How often the process waited for a page to be read from disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


_TIMER = """
import json, os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(95))
late, end = [], time.monotonic() + float(sys.argv[2])
while (now := time.monotonic()) < end:
    time.sleep(0.002)
    over = 1e3 * (time.monotonic() - now) - 2
    if over > 3:
        late.append((time.time(), round(over, 1)))
print(json.dumps(late))
"""
_NEAR_S = 0.3  # what came this soon after a late timer


class Timers:
    """A bare timer of 2 ms on every core, before which nothing here goes: what makes it late (the host of a virtual machine) makes everything late."""

    def __init__(self, seconds: float) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self._all = [subprocess.Popen([sys.executable, "-c", _TIMER, str(c), str(seconds)], stdout=subprocess.PIPE, text=True) for c in cores]

    def late(self) -> list[tuple[float, float]] | None:
        """(Unix time, ms) of every time one was late by more than 3 ms; None where such priorities are not allowed."""
        texts = [t.communicate()[0] for t in self._all]
        if not all(texts):
            return None
        return sorted((at, ms) for text in texts for at, ms in json.loads(text))


def apart(events: list[dict[str, Any]], late: list[tuple[float, float]]) -> int:
    """Xruns of ours for which no late timer can be blamed."""
    return sum(not any(-0.05 <= e["at_s"] - at <= _NEAR_S for at, _ in late) for e in events if e["kind"] in OURS)


class Heard:
    """What another program records: seconds, and how long it was silent at a stretch while the microphone was not."""

    def __init__(self, server: SoundServer) -> None:
        self.process = subprocess.Popen(
            ["parec", "-d", "voicewire", "--format=float32le", f"--rate={RATE}", "--channels=1", "--latency-msec=20"], env=server.env, stdout=subprocess.PIPE
        )
        self.samples, self.longest_silence_s, self._silent = 0, 0.0, 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        while data := self.process.stdout.read(4 * 480):
            x = np.frombuffer(data[: len(data) // 4 * 4], np.float32)
            self.samples += len(x)
            self._silent = 0 if np.abs(x).max(initial=0) > 1e-5 else self._silent + len(x)
            if self.samples > 5 * RATE:
                self.longest_silence_s = max(self.longest_silence_s, self._silent / RATE)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def _loop(server: SoundServer, tone: Path) -> subprocess.Popen[bytes]:
    """Play into the simulated microphone without end, also across restarts of the server."""
    again = f"while true; do paplay --latency-msec=20 -d mic_feed '{tone}' || sleep 0.05; done"
    return subprocess.Popen(["bash", "-c", again], env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def soak(server: SoundServer, minutes: float, tone: Path, source: str) -> dict[str, Any]:
    """→ counts, memory and delay over `minutes`. source: the microphone."""
    ended = threading.Event()
    player = _loop(server, tone)
    for work in (busy, busy, parse):
        threading.Thread(target=work, args=(ended,), daemon=True).start()
    memory: list[tuple[float, float]] = []
    rings, steps, drifts, delays = [], [], [], []
    events: list[dict[str, Any]] = []
    try:
        with Live(LiveSettings(source, "virtual")) as live:
            heard = Heard(server)
            faults, timers = page_ins(live.opened["pid"]), Timers(minutes * 60)
            bar = tqdm(total=round(minutes * 60), unit="s", mininterval=1, disable=None)
            began = time.monotonic()
            counts: dict[str, int] = {}
            for report in live.reports(minutes * 60):
                if "event" in report:
                    events.append(report["event"])
                if "status" not in report:
                    continue
                s = report["status"]
                counts = s["counts"]
                spent = time.monotonic() - began
                if spent > 5:
                    rings.append(s["delay_ms"]["ring"])
                    delays.append(sum(max(0.0, v) for v in s["delay_ms"].values()))
                    steps.append(s["step_max_ms"])
                    drifts.append(s["drift_ppm"])
                if not memory or spent - memory[-1][0] > 10:
                    memory.append((spent, resident_mib(live.opened["pid"])))
                    bar.update(round(spent) - bar.n)
            bar.close()
            seconds = time.monotonic() - began
            faults = page_ins(live.opened["pid"]) - faults
            heard.close()
        late = timers.late()
    finally:
        ended.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(player.pid, signal.SIGTERM)
    settled = [m for t, m in memory if t > min(60, 0.3 * minutes * 60)] or [m for _, m in memory]
    return {
        "seconds": round(seconds, 1), "restarts": live.restarts, "counts": counts, "xruns_of_ours": sum(counts.get(k, 0) for k in OURS),
        "heard_s": round(heard.samples / RATE, 1), "longest_silence_ms": round(1e3 * heard.longest_silence_s, 1),
        "ring_ms": [round(float(v), 1) for v in np.percentile(rings, [0, 50, 100])], "step_max_ms": round(max(steps), 1),
        "drift_ppm": [round(float(v), 1) for v in np.percentile(drifts, [0, 50, 100])],
        "audio_process_mib": [round(settled[0], 1), round(max(settled), 1), round(settled[-1], 1)],
        "first_events": events[:5], "page_ins": faults,
        "late_timers": late and [len(late), max(ms for _, ms in late)], "apart": None if late is None else apart(events, late),
    }  # fmt: skip


def recover(server: SoundServer, tone: Path) -> dict[str, float]:
    """Seconds from a device's return to sound at the virtual microphone's input side."""
    took: dict[str, float] = {}
    player = _loop(server, tone)
    try:
        with Live(LiveSettings("mic", "virtual", strength_db=0.0)) as live:
            for what in ("server killed", "microphone pulled"):
                _sounding(server, live)
                if what == "server killed":
                    server.stop(signal.SIGKILL)
                    time.sleep(1.0)
                    server.start()
                    began = time.monotonic()
                    os.killpg(player.pid, signal.SIGKILL)  # it may have come back before its sink, and now plays elsewhere
                    player = _loop(server, tone)
                    server.from_now()
                else:
                    server.pactl("unload-module", server.module_of("source_name=mic "))
                    time.sleep(1.0)
                    server.pactl("load-module", "module-remap-source", "source_name=mic", "master=mic_feed.monitor")
                    began = time.monotonic()
                _sounding(server, live)
                took[what] = round(time.monotonic() - began, 2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(player.pid, signal.SIGKILL)
    return took


def _sounding(server: SoundServer, live: Live) -> None:
    """Return when another program hears sound at the virtual microphone."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        parec = subprocess.Popen(["parec", "-d", "voicewire", "--format=float32le", "--channels=1", "--latency-msec=10"], env=server.env,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            assert parec.stdout
            until = time.monotonic() + 3.0
            while time.monotonic() < until and (data := parec.stdout.read(1920)):
                if np.abs(np.frombuffer(data[: len(data) // 4 * 4], np.float32)).max(initial=0) > 1e-3:
                    return
        finally:
            parec.kill()
            parec.wait()
    raise RuntimeError("nothing was heard within 15 s")


def quality(server: SoundServer, folder: Path) -> dict[str, float] | None:
    """PESQ of the bundled recording against its clean original: as `voicewire file` writes it, and as parec hears it live. None without `pesq`."""
    if find_spec("pesq") is None:
        return None
    with as_file(files("voicewire.rt") / "samples") as samples:
        x, rate = sf.read(samples / "noisy.flac", dtype="float32")
        clean, _ = sf.read(samples / "clean.flac", dtype="float32")
    by_file = process(x[:, None], Stream(rate, strength_db=LIVE_STRENGTH_DB["restore"]))[0][:, 0]
    sf.write(folder / "once.wav", x, rate)
    with Live(LiveSettings("mic", "virtual")):
        command = ["parec", "-d", "voicewire", "--format=float32le", f"--rate={rate}", "--channels=1", "--latency-msec=20", str(folder / "heard.raw")]
        parec = subprocess.Popen(command, env=server.env)
        time.sleep(3)  # clocks settle
        subprocess.run(["paplay", "-d", "mic_feed", str(folder / "once.wav")], env=server.env, check=True)
        time.sleep(0.7)
        parec.terminate()
        parec.wait()
    heard = np.fromfile(folder / "heard.raw", np.float32)
    size = 1 << (len(heard) + len(by_file)).bit_length()
    lag = int(np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(by_file, size)), size)[: len(heard)].argmax())
    return {"file": round(pesq_wb(by_file, clean), 3), "live": round(pesq_wb(heard[lag : lag + len(clean)], clean), 3)}


def report(kind: str, minutes: float, clock_ppm: float | None, result: dict[str, Any]) -> str:
    s, d, q = result["soak"], result["delay"], result["quality"]
    pesq = f"{q['file']}, {q['live']}" if q else "not measured: pip install pesq"
    blame = "" if s["apart"] is None else f", {s['apart']} of them without a late bare timer"
    late = "not allowed here" if s["late_timers"] is None else "{} times, worst {} ms".format(*s["late_timers"]) if s["late_timers"] else "never"
    lines = [
        f"## {kind}, {minutes:g} minutes, {f'microphone {clock_ppm:+g} ppm fast, ' if clock_ppm is not None else ''}{time.strftime('%Y-%m-%d')}",
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; load average at the end {os.getloadavg()[1]:.1f}",
        "",
        "| what | measured |",
        "|---|---|",
        f"| xruns of ours (starved, dropped) | {s['xruns_of_ours']}{blame} |",
        f"| all counters | {s['counts'] or 'none'} |",
        f"| longest silence heard by another program | {s['longest_silence_ms']} ms of {s['heard_s']} s recorded |",
        f"| worst step of the model | {s['step_max_ms']} ms of 20 |",
        f"| delay of the ring: least, median, most | {s['ring_ms']} ms |",
        f"| clock correction: least, median, most | {s['drift_ppm']} ppm |",
        f"| memory of the audio process: after the start, most, at the end | {s['audio_process_mib']} MiB |",
        f"| pages the audio process waited for | {s['page_ins']} |",
        f"| a bare 2 ms timer on every core, before everything else: late by more than 3 ms | {late} |",
        f"| audio process replaced | {s['restarts']} times |",
        f"| sound again after the server was killed and restarted | {result['recovery']['server killed']} s |",
        f"| sound again after the microphone came back | {result['recovery']['microphone pulled']} s |",
        f"| PESQ of the bundled recording: `voicewire file`, heard live | {pesq} |",
        "",
        "| delay, ms | p50 | p99 | p99.9 | worst | heard |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, label in (("copy", "bare copy through the same server"), ("live", "voicewire live")):
        r = d[name]
        lines.append(f"| {label} | {r['p50']} | {r['p99']} | {r['p999']} | {r['worst']} | {r['n']} of {r['n'] + r['unheard']} |")
    lines.append("| ours | " + " | ".join(f"{d['live'][k] - d['copy'][k]:+.1f}" for k in ("p50", "p99", "p999", "worst")) + " | |")
    if s["first_events"]:
        lines += ["", "First events: " + "; ".join(f"{e['kind']} {e['ms']} ms ({e['cause']})" for e in s["first_events"])]
    return "\n".join(lines) + "\n"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", choices=tuple(KINDS), default="pipewire")
    p.add_argument("--minutes", type=float, default=30.0)
    p.add_argument("--clock-ppm", type=float, help="a microphone whose clock is that much fast (pulseaudio only)")
    p.add_argument("--delay-seconds", type=float, default=30.0)
    p.add_argument("--report", type=Path, help="append a section to this file")
    a = p.parse_args()
    if a.clock_ppm is not None and a.server != "pulseaudio":
        p.error("--clock-ppm needs --server pulseaudio")
    try:
        server = SoundServer(a.server)
    except RuntimeError as e:
        print(f"soak: {e}", file=sys.stderr)
        return 2
    with as_file(files("voicewire.rt") / "samples" / "noisy.flac") as path:
        x, rate = sf.read(path, dtype="float32")
    with server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.env)
        tone = Path(folder) / "noisy.wav"
        sf.write(tone, np.tile(x, 20), rate)
        if a.clock_ppm is None:
            result: dict[str, Any] = {"soak": soak(server, a.minutes, tone, "mic")}
        else:
            with ClockedMicrophone(server, samplerate.resample(x, ClockedMicrophone.RATE / rate, "sinc_fastest"), a.clock_ppm):
                result = {"soak": soak(server, a.minutes, tone, "clocked")}
        print(json.dumps(result), flush=True)  # what took long is not lost to what follows
        result["recovery"] = recover(server, tone)
        result["quality"] = quality(server, Path(folder))
        result["delay"] = measure(a.delay_seconds, LiveSettings())
    text = report(a.server, a.minutes, a.clock_ppm, result)
    print(text)
    if a.report:
        with a.report.open("a") as f:
            f.write("\n" + text)
    return 1 if result["soak"]["xruns_of_ours"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

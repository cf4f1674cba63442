"""A private sound server with a simulated microphone, for tests and measurements on machines without sound hardware.

    with SoundServer("pipewire") as server:            # or "pulseaudio"; both need only their Debian packages, no systemd, no hardware
        subprocess.run(["parec", "-d", "mic"], env=server.env)

What is played into the sink `mic_feed` is what the source `mic` hears; `speaker` is a sink to play to (its monitor: `speaker.monitor`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from voicewire.rt.realtime import try_realtime

KINDS = {"pulseaudio": ("pulseaudio", "pactl"), "pipewire": ("pipewire", "wireplumber", "dbus-daemon", "pactl")}

_DEVICES = (
    "module-null-sink sink_name=mic_feed rate={rate} channels=1 sink_properties=device.description=mic_feed",
    "module-remap-source source_name=mic master=mic_feed.monitor source_properties=device.description=mic",
    "module-null-sink sink_name=speaker rate=48000 channels=2 sink_properties=device.description=speaker",
)

# 10 ms quantum; without the power-of-two lines PipeWire 0.3.65 rounds 480 to 256
_PIPEWIRE = """context.properties = {
  default.clock.rate = 48000  default.clock.quantum = 480  default.clock.min-quantum = 240  default.clock.max-quantum = 2048
  clock.power-of-two-quantum = false  default.clock.power-of-two-quantum = false }
"""
_PIPEWIRE_PULSE = """context.spa-libs = { audio.convert.* = audioconvert/libspa-audioconvert  support.* = support/libspa-support }
context.modules = [
  { name = libpipewire-module-rt args = { nice.level = -11 } flags = [ ifexists nofail ] }
  { name = libpipewire-module-protocol-native } { name = libpipewire-module-client-node }
  { name = libpipewire-module-adapter } { name = libpipewire-module-metadata }
  { name = libpipewire-module-protocol-pulse args = { } } ]
pulse.properties = { server.address = [ "unix:native" ] }
"""


class SoundServer:
    """kind: "pulseaudio" or "pipewire". mic_rate: Hz of the simulated microphone. RuntimeError when the server's programs are missing."""

    def __init__(self, kind: str, mic_rate: int = 48000) -> None:
        missing = [p for p in KINDS[kind] if not shutil.which(p)]
        if missing:
            raise RuntimeError(f"{kind} is not installed ({', '.join(missing)} missing); on Debian: make sound-servers")
        self.kind, self.mic_rate = kind, mic_rate
        self.folder = Path(tempfile.mkdtemp(prefix="vw-snd-"))
        run, config = self.folder / "run", self.folder / "config"
        for folder in (run / "pulse", config):
            folder.mkdir(parents=True, mode=0o700)
        os.chmod(run, 0o700)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PULSE_", "PIPEWIRE_", "DBUS_", "XDG_"))}
        self.env = clean | {
            "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(run), "XDG_CONFIG_HOME": str(config), "XDG_STATE_HOME": str(self.folder / "state"),
            "PULSE_SERVER": f"unix:{run}/pulse/native", "DBUS_SESSION_BUS_ADDRESS": f"unix:path={run}/bus",
        }  # fmt: skip
        if kind == "pipewire":
            for name, text in (("pipewire.conf.d/10-voicewire.conf", _PIPEWIRE), ("voicewire-pulse.conf", _PIPEWIRE_PULSE)):
                path = config / "pipewire" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SoundServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, *command: str) -> None:
        log = (self.folder / f"{Path(command[0]).name}.log").open("ab")
        self._processes.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True))

    def _wait(self, what: str, ready: object, timeout_s: float = 15) -> None:
        end = time.monotonic() + timeout_s
        while not ready():  # type: ignore[operator]
            if time.monotonic() > end:
                logs = "\n".join(p.read_text(errors="replace")[-400:] for p in self.folder.glob("*.log"))
                raise RuntimeError(f"{self.kind}: {what} not ready after {timeout_s:.0f} s\n{logs}")
            time.sleep(0.05)

    def start(self) -> None:
        """Start the server with its devices. RuntimeError when it cannot be done; PipeWire sometimes hangs in its first second, so twice."""
        try:
            self._start()
        except (RuntimeError, subprocess.TimeoutExpired):
            self.stop(signal.SIGKILL)
            self._start()

    def _start(self) -> None:
        run = Path(self.env["XDG_RUNTIME_DIR"])
        if self.kind == "pulseaudio":
            self._spawn(
                "pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no", "--realtime",
                "-L", f"module-native-protocol-unix socket={run}/pulse/native",
            )  # fmt: skip
        else:
            if not (run / "bus").exists():
                self._spawn("dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={self.env['DBUS_SESSION_BUS_ADDRESS']}")
                self._wait("bus", (run / "bus").exists)
            self._spawn("pipewire")
            self._wait("pipewire", (run / "pipewire-0").exists)
            self._spawn("wireplumber")
            self._spawn("pipewire", "-c", "voicewire-pulse.conf")
        self._wait("server", lambda: subprocess.run(["pactl", "info"], env=self.env, capture_output=True).returncode == 0)
        for module in _DEVICES:
            self.pactl("load-module", *module.format(rate=self.mic_rate).split())
        self.pactl("set-default-sink", "speaker")
        self.pactl("set-default-source", "mic")
        self._wait("microphone", lambda: "\tmic\t" in self.pactl("list", "short", "sources"))
        if self.kind == "pipewire":  # it lists devices long before it connects them
            self._wait("sound from the microphone", self._heard)

    def from_now(self, sink: str = "mic_feed") -> None:
        """Call when something plays into the sink. PulseAudio's null sink is two seconds ahead when it is opened, then silent for as long; no microphone is."""
        if self.kind == "pulseaudio":
            feed = next(line.split()[0] for line in self.pactl("list", "short", "sinks").splitlines() if f"\t{sink}\t" in line)
            self._wait("player", lambda: any(line.split("\t")[1] == feed for line in self.pactl("list", "short", "sink-inputs").splitlines()))
            for suspend in "10":
                self.pactl("suspend-sink", sink, suspend)

    def _heard(self) -> bool:
        """Does what is played into mic_feed come out of mic?"""
        player = subprocess.Popen(["pacat", "-d", "mic_feed", "/dev/urandom"], env=self.env, stderr=subprocess.DEVNULL)
        listener = subprocess.Popen(
            ["timeout", "1", "parec", "-d", "mic", "--latency-msec=20"], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert listener.stdout
            while data := listener.stdout.read(960):
                if any(data):
                    return True
            return False
        finally:
            for p in (player, listener):
                p.kill()
                p.wait()

    def pactl(self, *args: str) -> str:
        done = subprocess.run(["pactl", *args], env=self.env, capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise RuntimeError(f"pactl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def module_of(self, text: str) -> str:
        """Number of the loaded module whose line contains `text`."""
        return next(line.split("\t")[0] for line in self.pactl("list", "short", "modules").splitlines() if text in line)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End every process of the server, newest first; SIGKILL plays a crash."""
        for p in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(p.pid, sig)
            try:
                p.wait(3)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        self._processes.clear()
        run = Path(self.env["XDG_RUNTIME_DIR"])
        for name in ("bus", "pipewire-0", "pipewire-0.lock", "pulse/native"):
            (run / name).unlink(missing_ok=True)


class ClockedMicrophone:
    """The source `clocked`: a microphone whose crystal is `ppm` parts in a million fast. PulseAudio only (PipeWire adapts such a source by itself).

    A pipe is filled by this process's clock while the server's sinks keep to theirs, so two devices really drift apart.
    audio: [n] float32 at 48 kHz, played without end.
    """

    RATE = 48000

    def __init__(self, server: SoundServer, audio: np.ndarray, ppm: float) -> None:
        self.server, self.ppm = server, ppm
        self._pcm = np.resize(audio, max(1, -(-len(audio) // 480)) * 480).astype("<f4").reshape(-1, 480)
        self._pipe = server.folder / "clocked.pipe"
        self._ended = threading.Event()

    def __enter__(self) -> ClockedMicrophone:
        self._module = self.server.pactl(
            "load-module", "module-pipe-source", "source_name=clocked", f"file={self._pipe}", "format=float32le", f"rate={self.RATE}", "channels=1"
        ).strip()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()
        return self

    def _feed(self) -> None:
        try_realtime()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})  # a command run in this process may have it end the process
        pipe = os.open(self._pipe, os.O_WRONLY)
        rate, began, sent = self.RATE * (1 + 1e-6 * self.ppm), time.monotonic(), 0
        with contextlib.suppress(BrokenPipeError):
            while not self._ended.wait(max(0.0, began + sent / rate - time.monotonic())):
                os.write(pipe, self._pcm[sent // 480 % len(self._pcm)].tobytes())
                sent += 480
        os.close(pipe)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self.server.pactl("unload-module", self._module)

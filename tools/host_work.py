"""CPU time that a stream costs the host each step on a device that computes nothing: with the STFT on the host and with all of it in the graph.

    python -m tools.host_work [--seconds 2]

No GPU is needed, and what it would take is not in it: samples into the pinned block, one launch (some 10 us of CUDA are not in it either), samples
out, and up to 256 streams the mirror. On a GPU `voicewire bench --engine auto` shows the same column.
"""

from __future__ import annotations

import argparse

from voicewire.engines import open_engine
from voicewire.engines.gpu.device import Mark
from voicewire.engines.gpu.ends import Ends
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.fake import FakeDevice, FakeMark
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.measure import Way, measure
from voicewire.engines.gpu.stepper import CapturedStepper

STREAMS = (1, 16, 64, 256, 1024, 4096)


class NoProgram:
    def bind(self, name: str, address: int) -> None: ...

    def enqueue(self) -> None: ...


class Idle(FakeDevice):
    """Done with everything at once."""

    def load(self, plan: bytes) -> NoProgram:  # type: ignore[override]
        return NoProgram()

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        self._queue.clear()
        self._done = mark.at


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    seconds = p.parse_args().seconds
    cpu = open_engine("onnx")
    layout = Layout(cpu.init_state(1))

    def make(capacity: int, mirror: bool, ends: Ends) -> CapturedStepper:
        return CapturedStepper(Idle(), lambda bucket: b"", layout, capacity, mirror=mirror, ends=ends)

    engine = GpuEngine("idle", cpu, make)
    for n in STREAMS:
        before, after = (measure("idle", Way(lambda: engine, host_stft), engine, n, seconds).host_us for host_stft in (True, False))
        print(f"{n:5} streams: STFT on the host {before:6.1f} us a stream and step, in the graph {after:6.1f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`voicewire build`: make the GPU's engines before they are needed, and compare each with the reference."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from voicewire.engines.engine import WEIGHTS, EngineError, open_engine
from voicewire.engines.gpu import chain, cuda
from voicewire.engines.gpu.lower import Precision
from voicewire.engines.gpu.plans import Plans
from voicewire.engines.gpu.stepper import BUCKETS, bucket_for
from voicewire.engines.gpu.verify import Difference, compare_pcm, noise_pcm

FRAMES = 100


@contextmanager
def _progress() -> Iterator[Progress]:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar


def verify(precision: Precision, bucket: int) -> Difference:
    """The engine of one batch size on the GPU beside ONNX Runtime, up to 8 streams. EngineError when it does not run."""
    engine = chain.open_tensorrt(WEIGHTS, precision=precision)
    slots = engine.pcm_slots(bucket)
    try:
        found = compare_pcm(slots, open_engine("onnx"), noise_pcm(min(bucket, 8), FRAMES))
        if engine.lost:
            raise EngineError(f"the engine of {bucket} streams does not run: {engine.lost}")
    finally:
        slots.close()
    return found


def run(console: Console, *, precision: Precision, streams: int) -> int:
    """Build for up to `streams` streams; → 1 when an engine is wrong, else 0."""
    try:
        capability: tuple[int, int] | None = cuda.capability()
    except EngineError as e:
        capability = None
        console.print(f"{e}: engines are built for the GPUs that TensorRT knows, and cannot be verified here", highlight=False)
    with _progress() as bar:
        tasks = {b: bar.add_task(f"{b} streams", total=1.0) for b in BUCKETS if b <= bucket_for(streams)}
        plans: Plans = chain.plans_for(WEIGHTS, precision, capability, lambda bucket, share: bar.update(tasks[bucket], completed=share))
        wrong = 0
        for bucket, task in tasks.items():
            begin, kept = time.perf_counter(), plans.kept(bucket)
            size = len(plans(bucket))
            bar.update(task, completed=1.0)
            said = f"{bucket:5} streams, {precision}: {size / 1e6:.1f} MB, {'kept' if kept else f'built in {time.perf_counter() - begin:.1f} s'}"
            if capability:
                difference = verify(precision, bucket)
                good = difference.good(precision)
                said += f", {difference.snr_db:.1f} dB from the reference (largest error {difference.max_error:.1e}){'' if good else ' WRONG'}"
                wrong += not good
            console.print(said, highlight=False)
    console.print(f"{plans.builder.tag}; engines are in {plans.path(1).parent}", highlight=False, soft_wrap=True)
    if not capability:
        console.print("not verified; on a machine with a GPU: voicewire build", highlight=False)
    return int(wrong > 0)

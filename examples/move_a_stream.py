"""Move a live stream to another process (or machine) without a gap: snapshot here, restore there.

python examples/move_a_stream.py noisy.wav
"""

import sys

import numpy as np
import soundfile as sf

from voicewire.rt import Stream

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
x, rate = sf.read(sys.argv[1], dtype="float32", always_2d=True)
half = len(x) // 2

here = Stream(rate)
first = here.process(x[:half, 0])
luggage = here.snapshot()
print(f"{len(luggage) / 1e3:.0f} kB to carry")

there = Stream(rate)
there.restore(luggage)
second = there.process(x[half:, 0])

stayed = here.process(x[half:, 0])
print("bit for bit the same:", np.array_equal(second, stayed))

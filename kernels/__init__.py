"""CUDA kernels, compiled by NVRTC through cuda-python, each with a NumPy twin that is called the same way (`Kernel`).

Importing this package needs neither CUDA nor NVRTC; `Kernel.compile` says in one line what is missing (`pip install 'voicewire[gpu]'`).
Order of one step, which is one CUDA graph (`engines.gpu.ends`):

    s16_to_slots → stft_analyse → the engine → kv_ring_write → stft_synthesise → slots_to_s16

Not launched by anything yet: `rvq_nearest` and `depth_sample`, for the token heads (`engines.heads_engine`) are in no step that is used; `mulaw_to_slots` and
`slots_to_mulaw`, for the
relay's adapters decode µ-law before they know a slot.
"""

from .kernel import Cost, Kernel, KernelError, Launch, Parameter
from .kv_ring import KV_RING_WRITE
from .pcm import MULAW_TO_SLOTS, S16_TO_SLOTS, SLOTS_TO_MULAW, SLOTS_TO_S16
from .rvq import RVQ_NEAREST
from .sampling import DEPTH_SAMPLE
from .stft import STFT_ANALYSE, STFT_SYNTHESISE

ALL = (
    S16_TO_SLOTS, MULAW_TO_SLOTS, STFT_ANALYSE, RVQ_NEAREST, DEPTH_SAMPLE, KV_RING_WRITE, STFT_SYNTHESISE, SLOTS_TO_S16, SLOTS_TO_MULAW,
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_120")  # what the tests compile for: A100, Ada, Hopper, Blackwell RTX

__all__ = [
    "ALL", "ARCHITECTURES", "DEPTH_SAMPLE", "KV_RING_WRITE", "MULAW_TO_SLOTS", "RVQ_NEAREST", "S16_TO_SLOTS", "SLOTS_TO_MULAW", "SLOTS_TO_S16",
    "STFT_ANALYSE", "STFT_SYNTHESISE", "Cost", "Kernel", "KernelError", "Launch", "Parameter",
]  # fmt: skip

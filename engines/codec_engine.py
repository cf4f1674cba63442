"""The codec on ONNX Runtime: spectrum → tokens and tokens → spectrum, a batch of slots a step, state outside. No PyTorch."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .codec_config import CodecConfig
from .codec_odds import Odds
from .codec_search import TokenSearch
from .engine import F32, WEIGHTS, EngineError, State

I64 = NDArray[np.int64]
CODEC_WEIGHTS = WEIGHTS / "codec"
_ACOUSTIC = "matmul_2"  # the exporter's name for what `acoustic_vq.project` gives: [slots, 1, code_dim + 1]; a test compares the two
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def _also(name: str) -> bytes:
    """What, behind the bytes of an ONNX model, makes an inner value one more output: parsers of protobuf join what comes twice of one message."""
    data = name.encode()
    for field in (1, 12, 7):  # name of a ValueInfoProto, output of a GraphProto, graph of a ModelProto; each shorter than 128 bytes
        data = bytes([field << 3 | 2, len(data)]) + data
    return data


class OnnxStep:
    """One ONNX graph `x, state... → outputs..., state.new...`; state that has no `.new` stays as it is. given: inputs that are no state, for every call.
    wanted: outputs, or inner values, to be given out instead of the outputs; only what these need is computed."""

    def __init__(self, path: Path, threads: int, given: tuple[str, ...] = (), wanted: tuple[str, ...] = ()) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            own = {o.name for o in self._session.get_outputs()}
            if inner := [name for name in wanted if name not in own]:
                model = path.read_bytes() + b"".join(map(_also, inner))
                self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exceptions have no common base that it documents
            raise EngineError(f"{path} cannot be loaded ({type(e).__name__}); export the weights again") from None
        inputs = {i.name: i for i in self._session.get_inputs() if i.name not in ("x", *given)}
        self._shapes = {n: (tuple(i.shape[1:]), _TYPES[i.type]) for n, i in inputs.items()}
        new = [o.name for o in self._session.get_outputs() if o.name.endswith(".new")]
        self._changed = [name.removesuffix(".new") for name in new]
        self._wanted = [*wanted, *new] if wanted else None
        self._how = ort.RunOptions() if wanted else None
        if self._how:
            self._how.only_execute_path_to_fetches = True

    def fresh(self, batch: int) -> State:
        return {n: np.zeros((batch, *shape), dtype) for n, (shape, dtype) in self._shapes.items()}

    def __call__(self, x: NDArray[Any], state: State) -> tuple[list[NDArray[Any]], State]:
        """state: with what is `given`, which the new one is without."""
        out = self._session.run(self._wanted, {"x": x, **state}, self._how)
        outputs = len(out) - len(self._changed)
        new = dict(zip(self._changed, out[outputs:], strict=True))
        return out[:outputs], {n: new.get(n, state[n]) for n in self._shapes}


class CodecEngine:
    """Encoder and decoder from a weights folder. Safe to share between threads (no state inside)."""

    name = "onnx"

    def __init__(self, folder: Path = CODEC_WEIGHTS, threads: int = 1) -> None:
        if not (folder / "codec.json").exists():
            here = folder == CODEC_WEIGHTS  # for their size in no wheel
            what = "the repository has some: pip install -e ." if here else "write some there: python -m voicewire.engines.codec_export"
            raise EngineError(f"no codec weights in {folder}; {what}")
        try:
            meta = json.loads((folder / "codec.json").read_text())
            self.config = CodecConfig.from_dict(meta["config"])
            self.weights: str = meta["weights"]  # fingerprint: both ends of a relay's tokens must have the same
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise EngineError(f"{folder / 'codec.json'} is not what codec_export writes ({e}); export the weights again") from None
        self.odds = Odds.load(folder, self.config, self.weights)  # its fingerprint binds token files
        self._encode, self._decode = OnnxStep(folder / "encode.onnx", threads), OnnxStep(folder / "decode.onnx", threads)
        self._folder, self._threads = folder, threads

    def init_encoder(self, batch: int) -> State:
        return self._encode.fresh(batch)

    def init_decoder(self, batch: int) -> State:
        return self._decode.fresh(batch)

    def encode(self, x: F32, state: State) -> tuple[I64, F32, State]:
        """x: [slots, 2, 160, 2] float32 spectrum → (tokens [slots, streams], semantic vectors [slots, code_dim], new state). Pure."""
        (tokens, semantic), new = self._encode(x, state)
        return tokens, semantic, new

    @cached_property
    def search(self) -> TokenSearch:
        """For variable rate; read when it is first asked for. EngineError where codec.safetensors, which nothing else needs, is not there."""
        return TokenSearch.load(self._folder, self.config.layers, self.odds)

    @cached_property
    def _hear(self) -> OnnxStep:
        return OnnxStep(self._folder / "encode.onnx", self._threads, wanted=(_ACOUSTIC, "semantic"))

    def hear(self, x: F32, state: State) -> tuple[F32, F32, State]:
        """`encode` without its search: → (acoustic numbers [slots, code_dim + 1] before what the semantic token tells is taken off, semantic vectors
        [slots, code_dim], new state). Pure."""
        (acoustic, semantic), new = self._hear(x, state)
        return acoustic[:, 0], semantic, new

    def decode(self, tokens: I64, state: State) -> tuple[F32, State]:
        """tokens: [slots, streams], -1 where one was not sent → ([slots, 2, 160, 2] float32 spectrum, new state). Pure."""
        (y,), new = self._decode(tokens, state)
        return y, new

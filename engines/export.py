"""Weights and graph out of a training checkpoint: fp16 safetensors, an ONNX step with explicit state, and their description.

    python -m voicewire.engines.export runs/restore/last.pt --high runs/high/last.pt --out engines/weights

The ONNX graph takes one frame for every slot. Attention rings are inputs only; the graph returns the new rows and the host writes them
(half the cost on a CPU: research/gpu §4.1). Needs torch and onnx: `pip install voicewire[train]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .checkpoint import fill, read_checkpoint
from .config import CORE_BINS, HOPS_PER_FRAME, TASKS, ModelConfig
from .net.causal import State
from .net.fullband import BINS, FullBand
from .net.model import Model
from .onnx_small import bytes_and_halves, halves
from .voiceprint import VOICE_PARTS

OPSET = 20
Store = Callable[[onnx.ModelProto], None]  # how weights are kept


def load_weights(folder: Path) -> FullBand:
    """The model in PyTorch from `model.safetensors` + `model.json`."""
    meta = json.loads((folder / "model.json").read_text())
    model = FullBand(ModelConfig.from_dict(meta["config"]))
    fill(model, {k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}, folder)
    return model.eval()


class StepGraph(nn.Module):
    """`step_rows` with positional tensors, as the exporter wants them."""

    def __init__(self, model: FullBand) -> None:
        super().__init__()
        self.model = model
        self.names = list(model.init_state(1))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, new, k, v = self.model.step_rows(x, dict(zip(self.names, state, strict=True)))
        return (y, k, v, *new.values())


class TurnGraph(nn.Module):
    """voice: [1, voice_dim] of a talker, a sentence or a place → what of a stream's state is turned towards it (`VOICE_PARTS`)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, voice: Tensor) -> tuple[Tensor, ...]:
        assert self.model.turn is not None
        return (*self.model.trunk.voice_row(voice), *self.model.turn(voice))


def export_onnx(model: FullBand, path: Path) -> None:
    """Write the step as ONNX: inputs `x` and every state by name, outputs `y`, `trunk.k.row`, `trunk.v.row` and `NAME.new`."""
    graph = StepGraph(model).eval()
    state = model.init_state(2)
    x = torch.randn(2, HOPS_PER_FRAME, BINS, 2)
    with torch.no_grad():
        new = list(model.step_rows(x, state)[1])
    write_step(graph, x, state, ["y", "trunk.k.row", "trunk.v.row", *(f"{n}.new" for n in new)], path, fingerprint(model))


def export_voices(model: FullBand, out: Path) -> None:
    """Write what makes a voice, [1, voice_dim], of an enrolment, all at once, [1, hops, 160, 2] (voice.onnx), of a sentence, [1, query_dim] (query.onnx),
    and the places of the task `separate` (places.npz), as far as the model knows them; and what turns a stream towards any of them (turn.onnx)."""
    core = model.core
    if core.voice is None:
        return
    hops = torch.export.Dim("frames", min=10, max=30000) * HOPS_PER_FRAME
    _write_graph(model, core.voice, torch.randn(1, 300, CORE_BINS, 2), ["voice"], {1: hops}, out / "voice.onnx")
    _write_graph(model, TurnGraph(core), torch.randn(1, model.cfg.voice_dim), list(VOICE_PARTS), {}, out / "turn.onnx", bytes_and_halves)
    if core.asked is not None:
        _write_graph(model, core.asked, torch.randn(1, model.cfg.query_dim), ["voice"], {}, out / "query.onnx")
    if core.places is not None:
        with torch.no_grad():
            np.savez(out / "places.npz", voice=core.places(torch.arange(model.cfg.separate)).numpy())


def _write_graph(model: FullBand, graph: nn.Module, x: Tensor, outputs: list[str], dynamic: dict[int, Any], path: Path, store: Store = halves) -> None:
    program = torch.onnx.export(
        graph.eval(),
        (x,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x"],
        output_names=outputs,
        dynamic_shapes=(dynamic,),
        verbose=False,
        optimize=False,
    )
    assert program is not None
    program.save(str(path))
    _finish(path, fingerprint(model), store)


def write_step(graph: nn.Module, x: Tensor, state: State, outputs: list[str], path: Path, weights: str, store: Store = halves) -> None:
    """graph(x, *state) → ONNX with inputs `x` and every state by name, slots on axis 0 of all. weights: the fingerprint it is stamped with; store: how weights
    are kept, by default as fp16 where they are such values."""
    slots = torch.export.Dim("slots", min=1, max=4096)
    program = torch.onnx.export(
        graph, (x, *state.values()), dynamo=True, opset_version=OPSET, input_names=["x", *state], output_names=outputs,
        dynamic_shapes={"x": {0: slots}, "state": tuple({0: slots} for _ in state)}, verbose=False,
        optimize=False,  # the exporter's optimiser takes `+ 1e-10` for `+ 0` and drops it: NaN on silence
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    _finish(path, weights, store)


def _finish(path: Path, weights: str, store: Store) -> None:
    """Without the notes of the machine that exported, stamped, weights stored small."""
    proto = onnx.load(str(path))
    del proto.metadata_props[:]
    for node in proto.graph.node:  # exporter notes: source paths of the machine that exported
        del node.metadata_props[:]
        node.doc_string = ""
    helper.set_model_props(proto, {"voicewire.weights": weights})
    store(proto)
    onnx.save(proto, str(path))


def fingerprint(model: nn.Module) -> str:
    """Hash that binds snapshots and voiceprints to the weights they were made with."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are stored: fp16, but for the statistics of norms, which may lie outside of it. ValueError for weights that are not finite."""
    kept = {k: v.half() if v.is_floating_point() and not k.rsplit(".", 1)[-1].startswith("running_") else v for k, v in weights.items()}
    if broken := [k for k, v in kept.items() if not torch.isfinite(v).all()]:
        raise ValueError(f"{broken[0]} holds numbers that do not fit into fp16 or are not finite; take an earlier checkpoint (step-N.pt)")
    return kept


def export(core: dict[str, Any], high: dict[str, Tensor] | None, out: Path) -> FullBand:
    """Write OUT/model.safetensors (fp16), model.onnx (weights stored as fp16, computed in fp32), prefix.npz (keys and values
    of the task tokens), model.json, and `export_voices`."""
    out.mkdir(parents=True, exist_ok=True)
    model = FullBand(ModelConfig.from_dict(core["config"])).eval()
    model.core.load_state_dict(core["ema"])
    if high is not None:
        model.high.load_state_dict(high)
    half = halved(model.state_dict())
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in half.items()})
    save_file({k: v.contiguous() for k, v in half.items()}, out / "model.safetensors")
    export_onnx(model, out / "model.onnx")
    export_voices(model, out)
    with torch.no_grad():
        states = [model.init_state(1, task) for task in TASKS]
    k, v = (torch.cat([s[f"trunk.prefix_{name}"][:, :, 0] for s in states]).numpy() for name in "kv")
    np.savez(out / "prefix.npz", k=k, v=v)
    meta = {"config": model.cfg.to_dict(), "weights": fingerprint(model), "steps": core["step"], "audio_hours": round(core["hours"], 2)}
    (out / "model.json").write_text(json.dumps(meta, indent=1) + "\n")
    return model


def reported(name: str, out: Path, write: Callable[[], object]) -> int:
    """What every exporter's command ends with: write, and list what is in `out` then. → exit code; 2, with one line, for what cannot be written."""
    try:
        write()
    except (ValueError, OSError) as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 2
    for f in sorted(out.iterdir()):
        print(f"{f}  {f.stat().st_size / 1e6:.2f} MB")
    return 0


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("core", type=Path, help="checkpoint of tools.train")
    p.add_argument("--high", type=Path, help="checkpoint of tools.train_high")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    a = p.parse_args()

    def write() -> None:
        high = read_checkpoint(a.high, "high")["high"] if a.high else None
        export(read_checkpoint(a.core, "config", "ema", "step", "hours"), high, a.out)

    return reported("export", a.out, write)


if __name__ == "__main__":
    raise SystemExit(main())

"""The commands around the GPU, where there is none and on the fake one: build, bench, doctor, the relay, tools.gpu_check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_tools import install
from relay_tools import wait_for

from tools import gpu_check
from voicewire.engines import Engine, EngineError, open_engine
from voicewire.engines.engine import WEIGHTS
from voicewire.engines.gpu import chain
from voicewire.engines.gpu.pcm_slots import DevicePcmSlots
from voicewire.engines.gpu.verify import Difference
from voicewire.rt import Stream, doctor
from voicewire.rt.cli import main
from voicewire.rt.relay.capacity import measure
from voicewire.rt.relay.metrics import Metrics
from voicewire.rt.relay.slots import Batching, Delivery, Scheduler


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(ordinal: int = 0) -> tuple[int, int]:
        raise EngineError("no NVIDIA GPU here")

    monkeypatch.setattr(chain.cuda, "capability", none)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# -- no GPU ----------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("arguments", [["bench", "--engine", "auto"], ["bench", "--engine", "tensorrt"], ["serve", "--engine", "torch-cuda", "--port", "0"]])
def test_commands_say_in_one_line_that_there_is_no_gpu(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "serving" not in line]
    assert len(lines) == 1 and "no NVIDIA GPU" in lines[0]


@pytest.mark.usefixtures("no_gpu")
def test_gpu_check_says_in_one_line_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == ["gpu_check: no NVIDIA GPU here; run it on a machine with an NVIDIA GPU"]
    rows = told.out.splitlines()
    assert len(rows) == len(gpu_check.CHECKS) and all(r.startswith("skipped") and r.endswith("no CUDA: no NVIDIA GPU here") for r in rows)
    assert gpu_check.main(["--only", "kernel,gpu"]) == 2
    assert "unknown check kernel;" in capsys.readouterr().err


@pytest.mark.usefixtures("no_gpu")
def test_doctor_does_not_miss_a_gpu() -> None:
    found = doctor._gpu()
    assert found.status == "ok" and "not needed" in found.what


# -- the fake one ----------------------------------------------------------------------------------------------------------
def test_build_makes_and_verifies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, tmp_path)
    assert doctor._gpu().advice.startswith("voicewire build")
    assert main(["build", "--streams", "2", "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "1 streams" in out and "2 streams" in out and "dB from the reference" in out and "not verified" not in out
    assert main(["build", "--streams", "1", "--precision", "fp32"]) == 0
    assert "kept" in capsys.readouterr().out
    monkeypatch.setattr("voicewire.rt.build.compare_pcm", lambda *_: Difference(1.0, 0.0))
    assert main(["build", "--streams", "1", "--precision", "fp32"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_bench_sets_every_way_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, tmp_path)
    monkeypatch.setattr("voicewire.engines.gpu.measure.LEAST_STEPS", 3)
    monkeypatch.setattr("voicewire.engines.gpu.stepper.COPIED", 2**16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "--engine", "auto", "--seconds", "0.01", "--streams", "1,2", "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    ways = ("graph", "enqueue", "graph, host STFT")
    assert [(r["variant"], r["streams"]) for r in doc["rows"]] == [(f"tensorrt {way}", n) for way in ways for n in (1, 2)]
    assert [r["nodes"] for r in doc["rows"]] == [12, 12, 0, 0, 6, 6]
    assert all(r["host_us"] > 0 for r in doc["rows"])
    assert all(0 < r["p50_ms"] <= r["p999_ms"] and r["floor_ms"] > 0 for r in doc["rows"])
    assert doc["rows"][1]["moved_mb"] - doc["rows"][0]["moved_mb"] == pytest.approx(0.7, abs=0.1)  # MB of state a stream
    assert [m.partition(":")[0] for m in doc["missing"]] == ["torch graph", "torch eager", "torch graph, host STFT"]


def test_the_relay_keeps_its_slots_on_the_device_and_survives_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine) -> None:
    """Three streams; one leaves and another takes its row; then the device goes. Every frame comes back, each as from a stream alone."""
    devices = install(monkeypatch, tmp_path)
    gpu = chain.open_tensorrt(WEIGHTS, precision="fp32")
    got: dict[int, list[Any]] = {}

    def collect(done: Any) -> None:
        items: list[Delivery] = list(done)
        for slot, y in items:
            got.setdefault(slot.generation, []).append(y)

    metrics = Metrics()
    assert metrics.steps_on(gpu) and not metrics.steps_on(gpu)
    scheduler = Scheduler(gpu, 3, collect, Batching(3, 5.0))
    assert isinstance(scheduler._slots, DevicePcmSlots), "the STFT is not in the graph"
    x = (0.05 * np.random.default_rng(2).standard_normal((4, 30 * 320))).astype(np.float32)
    try:
        slots = [scheduler.open(16000, lambda y: None) for _ in range(3)]

        def feed(who: dict[int, Any], begin: int, end: int) -> None:
            for t in range(begin, end):
                for row, slot in who.items():
                    scheduler.submit(slot, x[row, t * 320 : (t + 1) * 320], 0.0)
            assert wait_for(lambda: all(len(got.get(s.generation, [])) == end for s in who.values()), 60)

        feed(dict(enumerate(slots)), 0, 10)
        scheduler.close(slots[1])
        late = scheduler.open(16000, lambda y: None)
        assert late.index == slots[1].index
        for t in range(5):
            scheduler.submit(slots[0], x[0, (10 + t) * 320 : (11 + t) * 320], 0.0)
            scheduler.submit(slots[2], x[2, (10 + t) * 320 : (11 + t) * 320], 0.0)
            scheduler.submit(late, x[3, t * 320 : (t + 1) * 320], 0.0)
        assert wait_for(lambda: len(got.get(late.generation, [])) == 5 and len(got[slots[0].generation]) == len(got[slots[2].generation]) == 15, 60)
        state, _, _ = scheduler.export(late)
        assert int(state["trunk.pos"][0]) == 5
        for device in devices:
            device.lost = True
        for t in range(5):
            scheduler.submit(slots[0], x[0, (15 + t) * 320 : (16 + t) * 320], 0.0)
            scheduler.submit(late, x[3, (5 + t) * 320 : (6 + t) * 320], 0.0)
        assert wait_for(lambda: len(got[late.generation]) == 10 and len(got[slots[0].generation]) == 20, 60)
        assert not scheduler.fault
    finally:
        scheduler.end()
    for row, slot, n in ((0, slots[0], 20), (2, slots[2], 15), (3, late, 10)):
        want = Stream(16000, strength_db=np.inf, engine=engine).process(x[row, : n * 320])
        have = np.concatenate([np.zeros(320, np.float32), *got[slot.generation]])[: n * 320]  # a stream has its first frame to wait for
        np.testing.assert_allclose(have, want, atol=1e-4)
    assert metrics.steps_on(gpu)
    shown = metrics.text().decode()
    assert 'engine="onnx"' in shown and "tensorrt: lost (the device is lost); the CPU steps now" in shown


def test_capacity_is_measured_on_the_slots_that_will_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)
    gpu = open_engine("tensorrt")
    monkeypatch.setattr("voicewire.rt.relay.capacity.seconds", lambda slots, n: 0.0001 * n)
    opened: list[int] = []
    monkeypatch.setattr(gpu, "pcm_slots", lambda n, make=gpu.pcm_slots: (opened.append(n), make(min(n, 1)))[1])  # type: ignore[attr-defined]
    assert measure(gpu).streams == 64  # the next step up, 256, would take 25.6 ms
    assert opened == [1, 4, 16, 64, 256]


def test_gpu_check_from_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows on the fake device, in this process. Only a GPU can run the kernels, and the bars of speed are not for a CPU to hold."""
    install(monkeypatch, tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "apart", gpu_check.check)
    monkeypatch.setitem(gpu_check.CHECKS, "tensorrt fp32", (60.0, lambda limit_s: gpu_check.parts.compared("tensorrt graph", "fp32", (2, 1))))
    monkeypatch.setattr("tools.gpu_step_rows.STEPS", 24)
    names = ["packages", "tensorrt fp32", "tensorrt samples", "tensorrt graph = enqueue", "tensorrt contract", "torch contract"]
    file = tmp_path / "found.json"
    assert gpu_check.main(["--only", ",".join(names), "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [r["name"] for r in rows] == names
    assert [r["verdict"] for r in rows] == ["note", "ok", "ok", "ok", "ok", "skipped"], rows
    assert "one graph a frame" in rows[2]["text"] and "bit-equal" in rows[3]["text"]
    assert "no frame missed" in gpu_check.check("lost").text
    install(monkeypatch, tmp_path, captures=False)
    assert gpu_check.main(["--only", "tensorrt graph = enqueue"]) == 1
    assert "no graph" in capsys.readouterr().out


def test_rows_of_gpu_check_do_not_take_each_other_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that raises, one that dies, one that hangs, one that comes too late."""
    monkeypatch.setitem(gpu_check.CHECKS, "raises", (30.0, lambda limit_s: 1 / 0))  # type: ignore[dict-item,return-value]
    assert gpu_check.check("raises").text == "ZeroDivisionError: division by zero"
    dead = gpu_check.apart("no such row", 60)
    assert dead.verdict == "FAILED" and "no such row" in dead.text
    late = gpu_check.apart("packages", 0.001)
    assert late.verdict == "FAILED" and "not done after" in late.text
    rows = gpu_check.run(["packages", "gpu"], lambda name, limit_s: gpu_check.Row(name, "ok", ""), budget_s=0)
    assert [r.text for r in rows] == ["no time left"] * 2

"""Every check that needs an NVIDIA GPU, in order, inside ten minutes: a table, and JSON for the record.

    PYTHONPATH=.links:. python -m tools.gpu_check --json gpu_check.json     # or with voicewire installed: python -m tools.gpu_check
    python -m tools.gpu_check --only kernels,bench

Needs the repository, NumPy, ONNX Runtime, soundfile and rich; what else is missing (cuda-python, TensorRT, onnx, torch) makes its rows say so. Every row runs
in a process of its own with a time limit, so that one that crashes or hangs costs only itself. Exit code: 0 all rows held (or were skipped), 1 one
failed, 2 no GPU here (every row says so).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import gpu_rows as parts
from . import gpu_step_rows as whole
from .gpu_rows import Found, Verdict

ROOT = Path(__file__).parents[1]
BUDGET_S = 570.0


@dataclass
class Row:
    """What a check found. detail: for the JSON only."""

    name: str
    verdict: Verdict
    text: str
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


CHECKS: dict[str, tuple[float, Callable[[float], Found]]] = {  # name → (time limit in seconds, check); what matters most comes first
    "gpu": (30, lambda _: parts.gpu()),
    "packages": (30, lambda _: parts.packages()),
    "kernels": (60, lambda _: parts.kernels()),
    "tensorrt build": (120, lambda _: parts.build()),
    "tensorrt fp32": (60, lambda _: parts.compared("tensorrt graph", "fp32", (4, 4))),
    "tensorrt samples": (90, lambda _: whole.samples("tensorrt graph")),
    "torch fp32": (60, lambda _: parts.compared("torch graph", "fp32", (4, 4))),
    "torch samples": (90, lambda _: whole.samples("torch graph")),
    "lost": (60, lambda _: whole.lost()),
    "bench": (240, whole.bench),
    "tensorrt graph = enqueue": (60, lambda _: whole.replay("tensorrt graph", "tensorrt enqueue")),
    "torch graph = eager": (60, lambda _: whole.replay("torch graph", "torch eager")),
    "tensorrt fp16 60 s": (90, lambda _: parts.speech("tensorrt graph")),
    "torch fp16 60 s": (90, lambda _: parts.speech("torch graph")),
    "tensorrt contract": (60, lambda _: parts.contract("tensorrt graph")),
    "torch contract": (60, lambda _: parts.contract("torch graph")),
    "tensorrt slots": (120, lambda _: parts.coming_and_going("tensorrt graph")),
    "torch slots": (90, lambda _: parts.coming_and_going("torch graph")),
    "gil": (60, lambda _: whole.gil()),
    "kernel times": (60, lambda _: parts.kernel_times()),
    "profile": (60, lambda _: whole.profile()),
}


def check(name: str, limit_s: float = 60.0) -> Row:
    """One check, in this process, which will be ended after `limit_s`."""
    from voicewire.engines.engine import EngineError
    from voicewire.kernels import KernelError

    begin = time.perf_counter()
    try:
        verdict, text, detail = CHECKS[name][1](limit_s)
    except (EngineError, KernelError, ImportError) as e:
        verdict, text, detail = "skipped", str(e), {}
    except Exception as e:
        verdict, text, detail = "FAILED", f"{type(e).__name__}: {e}", {}
    return Row(name, verdict, text.replace("\n", " "), time.perf_counter() - begin, detail)


def apart(name: str, limit_s: float) -> Row:
    """One check in a process of its own."""
    begin = time.perf_counter()
    path = os.pathsep.join([str(ROOT / ".links"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tools.gpu_check", "--row", name, "--limit", str(limit_s)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    except subprocess.TimeoutExpired:
        return Row(name, "FAILED", f"not done after {limit_s:.0f} s", time.perf_counter() - begin)
    try:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return Row(name, "FAILED", f"ended with {done.returncode}: {last}", time.perf_counter() - begin)


def run(names: list[str], one: Callable[[str, float], Row], budget_s: float = BUDGET_S) -> list[Row]:
    """The checks in order, as long as there is time; prints each as it ends."""
    from rich.console import Console

    console, rows, end = Console(soft_wrap=True, highlight=False), [], time.monotonic() + budget_s
    for name in names:
        left = end - time.monotonic()
        row = one(name, min(CHECKS[name][0], left)) if left > 5 else Row(name, "skipped", "no time left")
        console.print(f"{row.verdict:8} {row.name:26} {row.seconds:6.1f} s  {row.text}", markup=False)
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    p.add_argument("--only", help="some of the checks, by name: " + ", ".join(CHECKS))
    p.add_argument("--row", help=argparse.SUPPRESS)
    p.add_argument("--limit", type=float, default=60.0, help=argparse.SUPPRESS)
    a = p.parse_args(arguments)
    try:
        import voicewire.engines  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(ROOT / ".links"))
    if a.row:
        print(json.dumps(asdict(check(a.row, a.limit)), default=float))
        return 0
    names = [n.strip() for n in a.only.split(",")] if a.only else list(CHECKS)
    if unknown := sorted(set(names) - set(CHECKS)):
        print(f"gpu_check: unknown check {', '.join(unknown)}; there are: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    why = no_gpu()
    rows = run(names, apart if not why else lambda name, limit_s: Row(name, "skipped", f"no CUDA: {why}"))
    if a.json:
        a.json.write_text(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    if why:
        print(f"gpu_check: {why}; run it on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    return int(any(r.verdict == "FAILED" for r in rows))


def no_gpu() -> str:
    """Why there is no GPU to check, or nothing. PyTorch's word counts too: it may be there without cuda-python."""
    from voicewire.engines.engine import EngineError
    from voicewire.engines.gpu.cuda import capability

    try:
        capability()
    except EngineError as e:
        try:
            import torch
        except ImportError:
            return str(e)
        return "" if torch.cuda.is_available() else str(e)
    return ""


if __name__ == "__main__":
    raise SystemExit(main())

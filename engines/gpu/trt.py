"""TensorRT, whichever there is: `tensorrt`, else `tensorrt_rtx`. Only the API both have. Networks are strongly typed: the ONNX decides precision.

`tensorrt` builds for the GPU it finds. `tensorrt_rtx` builds without one, and says at run time which GPUs it runs on (8.0, 8.6, 8.9 and 12.0
upwards; 9.0, Hopper data-centre GPUs, is not among its build targets).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from ..engine import EngineError

PACKAGES = ("tensorrt", "tensorrt_rtx")


@cache
def module() -> Any:
    """The package. EngineError where neither can be imported."""
    why = []
    for name in PACKAGES:
        try:
            found = importlib.import_module(name)
            found.Builder  # noqa: B018  (the lean runtime has none)
            return found
        except ModuleNotFoundError as e:
            if e.name != name:
                why.append(f"{name}: {e}")
        except Exception as e:  # a package whose libraries are missing raises what it likes
            why.append(f"{name}: {str(e).splitlines()[0]}")
    raise EngineError(f"no TensorRT: pip install 'voicewire[gpu]'{' (' + '; '.join(why) + ')' if why else ''}")


def made(kind: str, log: Any) -> Any:
    """A `Builder` or a `Runtime`. EngineError where the package's libraries do not go together with the driver, or with each other."""
    trt = module()
    try:
        return getattr(trt, kind)(log)
    except TypeError:  # pybind11: the factory function returned nothing
        raise EngineError(f"{trt.__name__} {trt.__version__} gives no {kind} here{f': {log.last}' if log.last else ''}; does the driver fit it?") from None


def logger() -> Any:
    """A logger that keeps the last error in `last` instead of printing."""
    base: Any = module().ILogger

    class Quiet(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.Severity.ERROR, base.Severity.INTERNAL_ERROR):
                self.last = message.splitlines()[0]

    return Quiet()


class Builder(Protocol):
    """Makes an engine of an ONNX step. tag: package, version and target, for the cache."""

    tag: str

    def build(self, onnx: bytes, progress: Callable[[float], None]) -> bytes: ...


class TrtBuilder:
    """capability: of the GPU that is here, None to build for all that the package knows (only `tensorrt_rtx` can). device: its name; plans of `tensorrt`
    are not for another of the same capability."""

    def __init__(self, capability: tuple[int, int] | None, device: str = "") -> None:
        trt = module()
        self._here = capability is not None
        target = "sm_{}{}".format(*capability) if capability else "any"
        if trt.__name__ == "tensorrt":
            target += f" {device}"
        self.tag = f"{trt.__name__} {trt.__version__} {target}"

    def build(self, onnx: bytes, progress: Callable[[float], None] = lambda share: None) -> bytes:
        """EngineError, with TensorRT's last error, when it cannot."""
        trt, log = module(), logger()
        builder = made("Builder", log)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know nothing else
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(onnx):
            raise EngineError(f"{trt.__name__} cannot read the model: {parser.get_error(0).desc()}")
        # for this very GPU, and where the package does not know it, for all that it knows: the runtime has the last word
        here = self._here and trt.__name__ == "tensorrt_rtx"
        for current in (True, False) if here else (False,):
            config = builder.create_builder_config()
            if hasattr(trt.BuilderFlag, "TF32"):
                config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
            if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
                config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # memory that the runtime takes while it runs cannot be captured
            config.progress_monitor = _monitor(trt, progress)
            if current:
                config.num_compute_capabilities = 1
                config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                progress(1.0)
                return bytes(plan)
        raise EngineError(f"{trt.__name__} cannot build the model: {log.last}")


def _monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Shares of the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outer, self._steps = "", 1

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._outer, self._steps = phase, max(1, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._outer:
                progress(min(1.0, (step + 1) / self._steps))
            return True

        def phase_finish(self, phase: str) -> None:
            return

    return Monitor()

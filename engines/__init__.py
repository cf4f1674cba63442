"""The model and its compiled forms. Importing this, or an ONNX engine, needs no PyTorch; `net`, `export` and `torch_engine` do."""

from .engine import Engine, EngineError, State, open_engine

__all__ = ["Engine", "EngineError", "State", "open_engine"]

"""Files that training runs leave behind. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_checkpoint(path: Path, *needs: str, device: str = "cpu") -> dict[str, Any]:
    """What a run's last.pt or step-N.pt holds, `needs` among it. ValueError, in one line, for anything else; OSError where there is nothing to read."""
    try:
        saved: Any = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception:  # torch has no name for what it says of other files: UnpicklingError, IndexError, EOFError, RuntimeError …
        raise ValueError(f"{path} is no checkpoint; give the last.pt of a training run") from None
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is no checkpoint; give the last.pt of a training run")
    if lacking := [key for key in needs if key not in saved]:
        raise ValueError(f"{path} is the checkpoint of another kind of run: it has no {', '.join(lacking)}")
    return saved


def fill(part: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Put `weights`, of the file or folder `source`, into a model. ValueError, in one line, where they are those of a model of another size or make."""
    try:
        part.load_state_dict(weights)
    except RuntimeError as e:
        first = str(e).strip().splitlines()[1:2] or [str(e)]
        raise ValueError(
            f"{source} holds the weights of another model (another [model] of the recipe, or another version): {first[0].strip().rstrip('.')}"
        ) from None

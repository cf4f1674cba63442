"""Files that training runs leave behind. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


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

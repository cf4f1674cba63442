"""The TOML file of `voicewire live`: one section, [live], with the fields of `LiveSettings`. Unknown keys are refused."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..asked import usual_task
from .controller import LiveSettings

_NAMES = {"in": "device_in", "out": "device_out"}  # as on the command line
_ALSO = {"strength": "strength_db", "query_gain": "query_gain_db"}  # the options' names are taken, too


def default_path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "voicewire" / "config.toml"


def load(path: Path) -> LiveSettings:
    """ValueError, with one line that names the file and the setting, for what does not fit; FileNotFoundError."""
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path}: {e}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text") from None
    for section in doc:
        if section != "live":
            raise ValueError(f"{path}: no section [{section}]; there is: [live]")
    known = {f.name: f for f in fields(LiveSettings)}
    values: dict[str, Any] = {}
    for key, value in doc.get("live", {}).items():
        name = (_NAMES | _ALSO).get(key, key)
        if name not in known or key in _NAMES.values():
            there = [{v: k for k, v in _NAMES.items()}.get(k, k) for k in known]
            raise ValueError(f"{path}: [live] has no setting '{key}'; it has: {', '.join(there)}")
        number = name in ("strength_db", "query_gain_db", "voice_strength", "period_ms", "cushion_ms")
        if isinstance(value, bool) or not isinstance(value, int if name == "talker" else (int, float) if number else str):
            raise ValueError(f"{path}: {key} must be {'a whole number' if name == 'talker' else 'a number' if number else 'text'}, not {value!r}")
        values[name] = float(value) if number else value
        if name in ("enroll", "record"):  # beside the file, wherever it is read from
            values[name] = str(path.parent / Path(str(value)).expanduser())
    if "task" not in values and (task := usual_task(values.get("query"), values.get("enroll"), values.get("talker"))):
        values["task"] = task
    try:
        return LiveSettings(**values)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None

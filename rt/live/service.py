"""A systemd user unit, on request: the virtual microphone is there after login."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from .backend import DeviceError

UNIT = "voicewire.service"


def text(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "voicewire.rt", "live", "--quiet", *arguments]
    return f"""[Unit]
Description=voicewire virtual microphone
After=pipewire-pulse.service pulseaudio.service

[Service]
ExecStart={shlex.join(command)}
Restart=on-failure
RestartSec=2
LimitRTPRIO=20

[Install]
WantedBy=default.target
"""


def path() -> Path:
    return Path.home() / ".config" / "systemd" / "user" / UNIT


def install(arguments: list[str]) -> str:
    """Write and enable the unit; → what was done. DeviceError without systemd."""
    if not shutil.which("systemctl"):
        raise DeviceError("no systemd here; start this at login instead: voicewire live --quiet " + shlex.join(arguments))
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(text(arguments))
    for command in (["daemon-reload"], ["enable", "--now", UNIT]):
        done = subprocess.run(["systemctl", "--user", *command], capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise DeviceError(f"{path()} is written, but systemctl --user {command[0]} failed: {why[0]}")
    return f"{path()} enabled; steer it with: voicewire set; stop it with: voicewire service remove"


def remove() -> str:
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "--user", "disable", "--now", UNIT], capture_output=True)
    there = path().exists()
    path().unlink(missing_ok=True)
    return f"{path()} removed" if there else "there was no voicewire service"

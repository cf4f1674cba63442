"""The wheel, installed as a user would: small, without torch, and working from anywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MB = 200


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the built wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # built from a copy: setuptools leaves a build/ behind that later wheels would pick up
        shutil.copy(name, folder)
    for room in ("rt", "engines", "kernels"):
        shutil.copytree(room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(folder)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    wheel = next(folder.glob("voicewire-*.whl"))
    subprocess.run([*pip, "--python", str(folder / "env/bin/python"), "install", str(wheel)], check=True)
    return folder / "env"


def test_size(installed: Path) -> None:
    size_mb = sum(p.stat().st_size for p in installed.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6
    assert size_mb < LIMIT_MB, f"installed size {size_mb:.0f} MB"


def test_demo_runs_without_torch(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run([installed / "bin/voicewire", "demo", "--out", tmp_path / "out"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/spectrogram.png").exists()
    assert subprocess.run([installed / "bin/python", "-c", "import torch"], capture_output=True).returncode != 0


def test_torch_engine_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    code = "from voicewire.engines import open_engine\ntry: open_engine('torch')\nexcept RuntimeError as e: print(e)"
    done = subprocess.run([installed / "bin/python", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install 'voicewire[train]'" in done.stdout and done.stdout.count("\n") == 1

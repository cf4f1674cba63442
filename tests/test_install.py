"""The wheel, installed as a user would: small, without torch, and working from anywhere."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

LIMIT_MB = 200
COPIED = ("pyproject.toml", "README.md", "LICENSE", "rt", "engines", "kernels")  # all that the wheel is built from


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the built wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for name in COPIED:  # built from a copy: setuptools leaves a build/ behind that later wheels would pick up
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(name, folder)
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


def test_tasks_without_their_weights_are_a_line(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run([installed / "bin/voicewire", "serve", "--tasks"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "voicewire: --tasks needs weights that are in the repository and in no wheel: there, pip install -e .\n"


def test_version(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run([installed / "bin/voicewire", "--version"], capture_output=True, text=True, cwd=tmp_path)
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"voicewire {version}\n", "")


def test_the_container_file_line_by_line(installed: Path, tmp_path: Path) -> None:
    """There is no container here; but what it copies is there, what it installs is what was installed here, and what it runs runs without a home."""
    lines = [line.split(" ", 1) for line in Path("examples/Containerfile").read_text().splitlines() if line and line[0] != "#"]
    steps: dict[str, list[str]] = {}
    for word, rest in lines:
        steps.setdefault(word, []).append(rest)
    copied = [name for line in steps["COPY"] for name in line.split()[:-1]]
    assert copied == list(COPIED) and all(Path(name).exists() for name in copied)
    (install,) = steps["RUN"]
    assert " -e " in install and "rm" not in install.split()  # the weights of tasks and tokens are in no wheel
    extras = install.split("[", 1)[1].split("]", 1)[0].split(",")
    assert set(extras) <= set(tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    assert steps["EXPOSE"] == ["8765"] and "8765" in steps["HEALTHCHECK"][0]
    command = [*json.loads(steps["ENTRYPOINT"][0]), *json.loads(steps["CMD"][0]), "--port", port, "--max-streams", "2"]
    health = json.loads(steps["HEALTHCHECK"][0].split(" CMD ", 1)[1].replace("8765", port))
    env = {"PATH": f"{installed / 'bin'}:/usr/bin:/bin", "HOME": "/nonexistent", "VOICEWIRE_TOKEN": "secret"}
    server = subprocess.Popen(command, env=env, cwd="/", stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            if (healthy := subprocess.run(health, env=env, cwd="/", capture_output=True).returncode == 0) or server.poll() is not None:
                break
            time.sleep(0.1)
        assert healthy
    finally:
        server.send_signal(getattr(signal, steps["STOPSIGNAL"][0]))
        said = server.communicate(timeout=60)[1]
    assert server.returncode == 0, said

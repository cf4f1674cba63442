"""A running `voicewire live` steered from outside: a UNIX socket a process, one line of JSON in, one out.

    {"get": true}                                   → {"status": {"mute": false, "task": "restore", …}}
    {"set": {"mute": true, "strength_db": 18}}      → {"status": …}, or {"error": "one line"}; the names and values of `Live.set`
    {"toggle": "mute"}                              → likewise; "mute" or "bypass", or a list of both

The socket is voicewire-PID.sock in `folder`, for this user alone (mode 0600); `reach` takes away what a dead process left. A connection is one request,
and one that says nothing for a second, or more than `MOST_BYTES`, is closed. Nothing here touches the audio process but through `Live.set` and
`Live.toggle`, and this half of the package imports nothing heavy, since `voicewire set`, which people bind to keys, begins with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time

TYPE_CHECKING = False  # as in `voicewire.rt`
if TYPE_CHECKING:
    from typing import Any

    from .controller import Live

MOST_BYTES = 4096  # of a request
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # a peer that left is an error of one request, not the end of the process
SWITCHES = ("bypass", "mute")
_NUMBERS = {"strength_db": True, "query_gain_db": True, "voice_strength": False}  # and whether null means something
_TEXTS = ("query", "task")
NAMES = (*SWITCHES, *_TEXTS, "talker", *_NUMBERS)
_REQUEST_S, _QUERY_S = 1.0, 2.0
_MOST_CLIENTS = 8  # at once; others wait for their turn
_MOST = 1e9  # of any number


def available() -> bool:
    return hasattr(socket, "AF_UNIX")  # not in Python on Windows


# -- where sockets are -----------------------------------------------------------------------------------------------------
def folder() -> str:
    """The user's runtime folder: $XDG_RUNTIME_DIR or /run/user/UID where it is ours and nobody else may write to it, else voicewire-UID in the folder of
    temporary files, made where it is missing. OSError where there is none."""
    user = os.geteuid()
    for path in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{user}"):
        if path and _ours(path, follow_symlinks=True):
            return path
    path = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"voicewire-{user}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if not _ours(path, follow_symlinks=False):
        raise OSError(f"{path} belongs to somebody else, or others may write to it")
    return path


def _ours(path: str, *, follow_symlinks: bool) -> bool:
    try:
        s = os.stat(path, follow_symlinks=follow_symlinks)
    except OSError:
        return False
    return stat.S_ISDIR(s.st_mode) and s.st_uid == os.geteuid() and not s.st_mode & 0o022


def sockets() -> list[tuple[int, str]]:
    """(process, socket) of every `live` of this user, and of those that died without a word."""
    found, where = [], folder()
    for name in os.listdir(where):
        number = name.removeprefix("voicewire-").removesuffix(".sock")
        if name == f"voicewire-{number}.sock" and number.isdecimal():
            path = os.path.join(where, name)
            with contextlib.suppress(OSError):
                s = os.lstat(path)
                if stat.S_ISSOCK(s.st_mode) and s.st_uid == os.geteuid():
                    found.append((int(number), path))
    return sorted(found)


def reach(path: str, timeout_s: float) -> socket.socket | None:
    """A connection; None, and no socket any more, where its process has died. OSError where a living one does not answer."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(timeout_s)
    try:
        s.connect(path)
        return s
    except (ConnectionRefusedError, FileNotFoundError):
        s.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None
    except OSError:
        s.close()
        raise


# -- what is asked ---------------------------------------------------------------------------------------------------------
def parse(line: bytes) -> tuple[dict[str, Any], list[str]]:
    """A request → (what to set, what to toggle). ValueError with one line."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('a request is one line of JSON, like {"set": {"mute": true}}') from None
    if not isinstance(request, dict) or not request or set(request) - {"get", "set", "toggle"}:
        raise ValueError('a request has "get", "set" or "toggle", and nothing else')
    change, names = request.get("set", {}), request.get("toggle", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or any(name not in SWITCHES for name in names):
        raise ValueError(f'"toggle" takes {" or ".join(SWITCHES)}')
    if not isinstance(change, dict):
        raise ValueError('"set" takes an object, like {"mute": true}')
    return {name: _value(name, value) for name, value in change.items()}, names


def _value(name: str, value: Any) -> Any:
    if name not in NAMES:
        raise ValueError(f"there is no {name[:40]!r}; there are: {', '.join(NAMES)}")
    if name in SWITCHES:
        good, what = isinstance(value, bool), "true or false"
    elif name in _TEXTS:
        good, what = isinstance(value, str) and value.isprintable(), "text"
    elif name == "talker":
        good, what = value in (1, 2) and isinstance(value, int) and not isinstance(value, bool), "1 or 2"
    elif value is None:
        good, what = _NUMBERS[name], "a number"
    else:
        good, what = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MOST, "a number"
        value = float(value) if good else value
    if not good:
        raise ValueError(f"{name} must be {what}")
    return value


def describe(change: dict[str, Any]) -> str:
    """A change in words: "mute on, strength 18 dB"."""
    said = []
    for name, value in change.items():
        label = name.removesuffix("_db").replace("_", " ")
        if name in SWITCHES:
            text = "on" if value else "off"
        elif value is None:
            text = "alone" if name == "query_gain_db" else "usual"
        else:
            text = f"{value:g}{' dB' if name.endswith('_db') else ''}" if name in _NUMBERS else str(value)
        said.append(f"{label} {text}")
    return ", ".join(said)


# -- who answers -----------------------------------------------------------------------------------------------------------
class Remote:
    """Context manager: while it is open, `live` can be steered. Where that cannot be, `live` runs all the same and an event says why."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        self._one = threading.Lock()  # a change and what is said about it
        self._socket: socket.socket | None = None
        self.path = ""

    def __enter__(self) -> Remote:
        if available():
            try:
                self._open()
            except OSError as e:
                self._live.tell("not_steerable", f"voicewire set cannot reach this: {e}")
        return self

    def _open(self) -> None:
        for _, path in sockets():
            with contextlib.suppress(OSError):
                if found := reach(path, 0.2):
                    found.close()
        path = os.path.join(folder(), f"voicewire-{os.getpid()}.sock")
        fresh = f"{path}.new"  # nobody finds it before it listens, so one that refuses is dead
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(fresh)
            os.chmod(fresh, 0o600)
            listener.listen(16)
            os.rename(fresh, path)
        except OSError:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        self._socket, self.path = listener, path
        threading.Thread(target=self._listen, args=(listener,), name="remote", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        listener, self._socket = self._socket, None
        if listener:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            listener.close()

    def _listen(self, listener: socket.socket) -> None:
        while self._socket is listener:
            self._places.acquire()
            try:
                client, _ = listener.accept()
            except OSError:  # closed, or out of descriptors for now
                self._places.release()
                time.sleep(0.1)
                continue
            threading.Thread(target=self._serve, args=(client,), name="remote client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                line = _read_line(client)
                if line:
                    client.settimeout(_REQUEST_S)
                    client.sendall(json.dumps(self.reply(line)).encode() + b"\n", NO_SIGNAL)
        finally:
            self._places.release()

    def reply(self, line: bytes) -> dict[str, Any]:
        try:
            if len(line) > MOST_BYTES:
                raise ValueError(f"a request is at most {MOST_BYTES} bytes")
            self._do(*parse(line))
            return {"status": self.status()}
        except ValueError as e:
            return {"error": " ".join(str(e).split())}

    def _do(self, change: dict[str, Any], names: list[str]) -> None:
        live = self._live
        with self._one:
            before, refusals = live.chosen, live.refusals
            if change:
                live.set(**change)
            for name in names:
                live.toggle(name)
            changed = {k: v for k, v in live.chosen.items() if v != before[k]}
        if "query" in change:  # words are made ready beside the audio, and may be refused there
            end = time.monotonic() + _QUERY_S
            while time.monotonic() < end and live.status.get("query") != change["query"] and live.refusals == refusals:
                time.sleep(0.02)
            if live.refusals != refusals:
                raise ValueError(live.refused)
        if changed:
            live.tell("set", describe(changed))

    def status(self) -> dict[str, Any]:
        """What holds, by the names of `Live.set`, with the newest status of the audio process around it."""
        from voicewire.rt.lane import LIVE_STRENGTH_DB

        live, chosen = self._live, self._live.chosen
        about = {"pid": os.getpid(), "in": live.opened.get("in"), "out": live.opened.get("out"), "backend": live.opened.get("backend")}
        makes = [kind for kind, name in (("microphone", live.settings.device_out), ("speaker", live.settings.device_in)) if name == "virtual"]
        usual = {"usual_strength_db": LIVE_STRENGTH_DB[chosen["task"]], "tasks": list(live.tasks)}
        return about | {"virtual": makes, "waiting": live.waiting} | live.status | chosen | usual


def _read_line(client: socket.socket) -> bytes:
    """What comes before the first line's end, the end of all, or more than MOST_BYTES. TimeoutError (an OSError) after a second."""
    data, end = b"", time.monotonic() + _REQUEST_S
    while b"\n" not in data and len(data) <= MOST_BYTES:
        client.settimeout(max(1e-3, end - time.monotonic()))
        more = client.recv(MOST_BYTES + 1 - len(data))
        if not more:
            break
        data += more
    return data.partition(b"\n")[0]

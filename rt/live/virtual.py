"""Virtual devices that other programs can choose by name.

Linux, PulseAudio or PipeWire: made here, without a driver. The microphone is a null sink that we play into and a source "voicewire" that
programs record from (browsers hide bare monitors); the speaker is a null sink "voicewire_speaker" that programs play to and we listen to.
Every module carries its owner's process id, so what a crash left behind is found and removed at the next start.
macOS and Windows: detected, and what to install is said.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .backend import DeviceError, pulse_module

MICROPHONE, SPEAKER = "voicewire", "voicewire_speaker"  # what people choose in their programs
FEED = "voicewire_feed"  # what we play into
NAMES = {MICROPHONE, SPEAKER, FEED, f"{FEED}.monitor", f"{SPEAKER}.monitor"}

_OWNER = re.compile(r"voicewire\.owner=\W?(\d+)")
PERSISTENT = 0  # owner of devices made by `voicewire virtual create`: they stay until `virtual remove`


def control(purpose: str) -> Any:
    """See `pulse.control`; imported when asked for, since only Linux has it."""
    return pulse_module().control(purpose)


def _properties(description: str, owner: int) -> str:
    return f'\'device.description="{description}" voicewire.owner="{owner}" priority.session="10" device.icon_name="audio-input-microphone"\''


def _alive(pid: int) -> bool:
    """Does process `pid` run, and may it be one of ours? (A number is used again after its process died.)"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return state not in "ZX" and (b"voicewire" in command or b"python" in command)
    except (OSError, IndexError):
        return False


def _modules(pulse: Any) -> list[tuple[int, int, str]]:
    """(module, owner, argument) of every voicewire device, newest first."""
    found = []
    for m in pulse.module_list():
        owner = _OWNER.search(m.argument or "")
        if owner:
            found.append((m.index, int(owner.group(1)), m.argument))
    return found[::-1]


def _parts(kind: str, owner: int) -> list[tuple[str, str]]:
    if kind == "source":
        own = f"sink_name={MICROPHONE} media.class=Audio/Source/Virtual rate=48000 channels=1 channel_map=mono"
        return [("module-null-sink", f"{own} sink_properties={_properties(MICROPHONE, owner)}")]
    if kind == "microphone":
        feed = f"sink_name={FEED} rate=48000 channels=1 channel_map=mono sink_properties={_properties('voicewire (internal)', owner)}"
        source = (
            f"source_name={MICROPHONE} master={FEED}.monitor channels=1 channel_map=mono master_channel_map=mono "
            f"source_properties={_properties(MICROPHONE, owner)}"
        )
        return [("module-null-sink", feed), ("module-remap-source", source)]
    return [("module-null-sink", f"sink_name={SPEAKER} rate=48000 channels=2 sink_properties={_properties('voicewire speaker', owner)}")]


def clean(pulse: Any) -> int:
    """Unload what processes that no longer live have left; → how many modules."""
    stale = [m for m, owner, _ in _modules(pulse) if owner != PERSISTENT and not _alive(owner)]
    for module in stale:
        pulse.module_unload(module)
    return len(stale)


def present(pulse: Any) -> list[str]:
    """Names of our devices that are there, with who owns them."""
    names = []
    for _, owner, argument in _modules(pulse)[::-1]:
        name = re.search(r"(?:sink|source)_name=(\S+)", argument)
        if name and name.group(1) != FEED:
            names.append(f"{name.group(1)} ({'made to stay' if owner == PERSISTENT else f'of process {owner}'})")
    return names


def microphone(owner: int, jack: bool) -> tuple[str, bool]:
    """Make the virtual microphone for `owner` unless one was made to stay; → (what to play into, made by us). DeviceError as `create`."""
    with control("virtual device") as pulse:
        clean(pulse)
        stays = any(f"sink_name={FEED} " in argument for _, other, argument in _modules(pulse) if other == PERSISTENT)
    kind, name = ("source", MICROPHONE) if jack and not stays else ("microphone", FEED)
    return name, bool(create(kind, owner))


def create(kind: str, owner: int) -> list[int]:
    """Make the "microphone", the "speaker" or (PipeWire only) the "source", a microphone that JACK plays into without a sink, for `owner` (a process id,
    or PERSISTENT); → its modules, none if it is there already, to stay.

    DeviceError when another living process owns it or the server refuses.
    """
    refuse_elsewhere()
    with control("virtual device") as pulse:
        clean(pulse)
        names = {"microphone": (FEED, MICROPHONE), "source": (MICROPHONE, FEED), "speaker": (SPEAKER,)}[kind]
        for _, other, argument in _modules(pulse):
            if any(f"sink_name={name} " in argument for name in names):
                if other in (PERSISTENT, owner):
                    return []
                what = "speaker" if kind == "speaker" else "microphone"
                raise DeviceError(f"the virtual {what} belongs to the running process {other}; stop that one first")
        made: list[int] = []
        try:
            for module, arguments in _parts(kind, owner):
                made.append(pulse.module_load(module, arguments))
            _appear(pulse, f"{SPEAKER}.monitor" if kind == "speaker" else MICROPHONE)
        except Exception:
            _unload(pulse, made)
            raise
    return made


def _appear(pulse: Any, source: str) -> None:
    """PipeWire makes devices in its own time."""
    end = time.monotonic() + 2
    while source not in {s.name for s in pulse.source_list()} and time.monotonic() < end:
        time.sleep(0.01)


def _unload(pulse: Any, modules: list[int]) -> None:
    for module in modules[::-1]:
        pulse.module_unload(module)


def from_now(*names: str) -> None:
    """Let those of our null sinks that are opened by `names` begin at once: PulseAudio's is two seconds ahead when it is opened, and silent for as long;
    suspended and resumed, it begins from now."""
    mine = {name.removesuffix(".monitor") for name in names} & {FEED, SPEAKER}
    if mine:
        with contextlib.suppress(DeviceError), control("virtual device") as pulse:
            if "PipeWire" in pulse.server_info().server_name:
                return
            for sink in pulse.sink_list():
                if sink.name in mine:
                    pulse.sink_suspend(sink.index, True)
                    pulse.sink_suspend(sink.index, False)


def discard(modules: list[int]) -> None:
    """Unload what `create` made; a server that is gone took them along."""
    with contextlib.suppress(DeviceError), control("virtual device") as pulse:
        _unload(pulse, modules)


def remove(owner: int | None = None, kind: str | None = None) -> int:
    """Unload the virtual devices of `owner` (None: all of them, whoever made them), of one kind, "microphone" or "speaker" (None: both); → how many modules."""
    with control("virtual device") as pulse:
        mine = [
            m for m, other, made_by in _modules(pulse)
            if owner in (None, other) and (kind is None or (SPEAKER in made_by) == (kind == "speaker"))
        ]  # fmt: skip
        _unload(pulse, mine[::-1])
    return len(mine)


def test_sink(name: str, owner: int) -> list[int]:
    """A null sink whose monitor plays the microphone in measurements; → its modules."""
    with control("test") as pulse:
        module = pulse.module_load("module-null-sink", f"sink_name={name} rate=48000 channels=1 sink_properties={_properties('voicewire test', owner)}")
        _appear(pulse, f"{name}.monitor")
    return [module]


def watch_listeners(tell: Callable[[int], None], ended: Callable[[], bool]) -> None:
    """Tell how many programs record from the virtual microphone, now and whenever it changes; returns when `ended` or the server goes."""
    with control("listeners") as pulse:

        def count() -> int:
            sources = {s.index for s in pulse.source_list() if s.name == MICROPHONE}
            return sum(o.source in sources for o in pulse.source_output_list())

        pulse.event_mask_set("source_output", "source")
        pulse.event_callback_set(lambda _: _stop_listening())
        while not ended():
            tell(count())
            pulse.event_listen(timeout=1.0)


def watch_defaults(tell: Callable[[str, str], None], ended: Callable[[], bool]) -> None:
    """Tell the names of the default source and sink, now and about once a second or when they change; returns when `ended` or the server goes."""
    with control("defaults") as pulse:
        pulse.event_mask_set("server")
        pulse.event_callback_set(lambda _: _stop_listening())
        while not ended():
            info = pulse.server_info()
            tell(info.default_source_name or "", info.default_sink_name or "")
            pulse.event_listen(timeout=1.0)


def _stop_listening() -> None:
    import pulsectl

    raise pulsectl.PulseLoopStop


def cable() -> tuple[str, str] | None:
    """macOS, Windows: (device to play into, what to choose in other programs) of an installed virtual cable."""
    from .portaudio import PortAudioBackend

    names = [d.name for d in PortAudioBackend().devices() if d.kind == "output"]
    for name in names:
        if "BlackHole" in name:
            return name, name
        if "CABLE Input" in name:
            return name, name.replace("CABLE Input", "CABLE Output")
    return None


def refuse_elsewhere() -> None:
    """DeviceError, with what to install and choose, where this program cannot make a virtual device itself."""
    if sys.platform.startswith("linux"):
        return
    if sys.platform == "darwin":
        raise DeviceError("install the free virtual cable BlackHole (brew install blackhole-2ch), then: --out BlackHole, and choose BlackHole in the call")
    raise DeviceError("install the free virtual cable VB-CABLE (vb-audio.com/Cable), then: --out 'CABLE Input', and choose 'CABLE Output' in the call")

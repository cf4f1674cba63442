"""Real-time scheduling of the calling thread: asked for where it may be had, reported either way."""

from __future__ import annotations

import os
import threading

PRIORITY = 10
NICER = 5


def try_realtime() -> str:
    """Ask for SCHED_FIFO; returns "" when it was granted, else one line that says why not and what to do."""
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no SCHED_FIFO; steps run at normal priority"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return "not allowed to schedule in real time; add '@audio - rtprio 20' to /etc/security/limits.d/ and join the audio group"
    except OSError as e:
        return f"real-time scheduling was refused ({e.strerror}); a container needs --cap-add=SYS_NICE"
    return ""


def normal() -> None:
    """Back to the ordinary scheduler."""
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def step_back() -> None:
    """The calling thread lets the others of its process go first: what takes milliseconds must not keep waiting what takes microseconds."""
    try:
        if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_FIFO:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(max(1, os.sched_getparam(0).sched_priority - 1)))
        elif hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICER)
    except OSError:
        pass  # it only helps

"""Real-time scheduling of the calling thread, memory that stays: asked for where they may be had, reported either way."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

PRIORITY = 10
NICER = 5
_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4  # mlockall(2)


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


def lock_memory() -> str:
    """Keep this process's pages in memory, those to come as they are touched: a page of code that the kernel had dropped costs a step milliseconds.

    Returns "" when it was granted, else one line that says why not and what to do.
    """
    if not sys.platform.startswith("linux"):
        return "memory is not locked on this system"
    import resource

    # with a limit the call could succeed now and make an allocation fail later
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return "not allowed to lock memory; add '@audio - memlock unlimited' to /etc/security/limits.d/ and join the audio group"
    if ctypes.CDLL(None, use_errno=True).mlockall(_CURRENT | _FUTURE | _ON_FAULT):
        return f"locking memory was refused ({os.strerror(ctypes.get_errno())}); a container needs --cap-add=IPC_LOCK"
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

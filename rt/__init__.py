"""Streams, devices, relay and command line. `from voicewire.rt import Stream` needs no PyTorch."""

from .stream import Stream

__all__ = ["Stream"]

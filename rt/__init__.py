"""Streams, devices, relay and command line. `from voicewire.rt import Stream` needs no PyTorch."""

from voicewire.engines.places import place
from voicewire.engines.query import ask
from voicewire.engines.voiceprint import Voiceprint, enrol

from .stream import Stream
from .whole import clean

__all__ = ["Stream", "Voiceprint", "ask", "clean", "enrol", "place"]

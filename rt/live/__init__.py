"""Live audio: microphone → ring → model → output edge → virtual microphone, in a process of its own."""

from .backend import DeviceError
from .controller import Live, LiveSettings

__all__ = ["DeviceError", "Live", "LiveSettings"]

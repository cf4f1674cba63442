"""Streams, devices, relay and command line. `from voicewire.rt import Stream` needs no PyTorch."""

TYPE_CHECKING = False  # (the module `typing` takes longer to import than all that `voicewire set` needs)
if TYPE_CHECKING:
    from voicewire.engines.places import place
    from voicewire.engines.query import ask
    from voicewire.engines.voiceprint import Voiceprint, enrol

    from .stream import Stream
    from .whole import clean
else:
    _FROM = {
        "Stream": "voicewire.rt.stream",
        "Voiceprint": "voicewire.engines.voiceprint",
        "ask": "voicewire.engines.query",
        "clean": "voicewire.rt.whole",
        "enrol": "voicewire.engines.voiceprint",
        "place": "voicewire.engines.places",
    }

    def __getattr__(name: str) -> object:
        """Imported when asked for: `voicewire set`, which people bind to keys, needs no NumPy."""
        if name not in _FROM:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_FROM[name]), name)


__all__ = ["Stream", "Voiceprint", "ask", "clean", "enrol", "place"]

"""Streams, devices, relay and command line. `from voicewire.rt import Stream` needs no PyTorch."""

TYPE_CHECKING = False  # (the module `typing` takes longer to import than all that `voicewire set` needs)
if TYPE_CHECKING:
    from .stream import Stream
else:

    def __getattr__(name: str) -> object:
        """Imported when asked for: `voicewire set`, which people bind to keys, needs no NumPy."""
        if name == "Stream":
            from .stream import Stream

            return Stream
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Stream"]

"""Live audio: microphone → ring → model → output edge → virtual microphone, in a process of its own."""

TYPE_CHECKING = False  # as in `voicewire.rt`
if TYPE_CHECKING:
    from .backend import DeviceError
    from .controller import Live, LiveSettings
else:

    def __getattr__(name: str) -> object:
        """Imported when asked for: `voicewire set` needs none of it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import backend, controller

        return getattr(backend if name == "DeviceError" else controller, name)


__all__ = ["DeviceError", "Live", "LiveSettings"]

"""Your own program around live audio: the virtual microphone runs beside it, this loop may do what it likes.

python examples/live.py            # then choose "voicewire" as the microphone somewhere
"""

from voicewire.rt.live import DeviceError, Live, LiveSettings

try:
    with Live(LiveSettings(device_out="virtual", strength_db=24.0)) as live:
        print(live.opened["in"], "->", live.opened["out"])
        for status in live.statuses():
            delay_ms = sum(max(0.0, v) for v in status["delay_ms"].values())
            print(f"in {status['in_db']:6.1f} dB  out {status['out_db']:6.1f} dB  {delay_ms:5.1f} ms  gaps {status['counts']}", end="\r")
except DeviceError as e:
    raise SystemExit(f"{e}") from None
except KeyboardInterrupt:
    print()

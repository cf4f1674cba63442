"""Take the picture of the relay's page for the README: a running server, Chromium, the bundled recording as its microphone.

voicewire serve --port 8765 & python -m tools.page_picture http://localhost:8765/ examples/relay_page.png [--dark] [--phone]

On a quiet machine: what the page says about delay and gaps is in the picture.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import soundfile as sf
import soxr
from PIL import Image
from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("picture", type=Path)
    p.add_argument("--dark", action="store_true")
    p.add_argument("--phone", action="store_true")
    p.add_argument("--seconds", type=float, default=10.0)
    a = p.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        microphone = Path(folder) / "microphone.wav"
        with as_file(files("voicewire.rt") / "samples" / "noisy.flac") as source:
            x, rate = sf.read(source)
        sf.write(microphone, soxr.resample(x, rate, 48000), 48000)
        browser = play.chromium.launch(executable_path=chromium, args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"])
        shape = PHONE if a.phone else {"viewport": {"width": 1100, "height": 900}}
        page = browser.new_context(color_scheme="dark" if a.dark else "light", **shape).new_page()
        page.goto(a.url)
        page.click("#go")
        page.wait_for_timeout(1000 * a.seconds)
        page.screenshot(path=a.picture, full_page=True)
        print(page.inner_text("#delay"), page.inner_text("#delay-parts"), "· gaps", page.inner_text("#gaps"), "· lost", page.inner_text("#lost"))
        browser.close()
    # 128 colours are enough, in a third of the bytes
    Image.open(a.picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(a.picture, optimize=True)


if __name__ == "__main__":
    main()

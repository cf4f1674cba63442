"""Gather freely licensed recordings from Debian's sound and game packages: engines, tyres, wind, doors, machines, blows, animals.

    python -m tools.gather sounds/ [--packages torcs-data sonic-pi-samples …] [--exclude-ids ids.txt]
    python -m tools.prepare --out cache/16k speech=… noise=… noise=sounds/

Needs a Debian or Ubuntu with package lists (`apt-get update`), installs nothing and needs no root. Voices and music are left out by their path;
very long and very short files too. Writes SOUNDS/manifest.csv with source, licence (from each package's copyright file) and label.
`tools.prepare` also takes LibriSpeech, VCTK, DNS and FSD50K folders as they are: speech=LibriSpeech/train-clean-100 noise=FSD50K.dev_audio
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import soundfile as sf
from tqdm import tqdm

from .ending import plainly

PACKAGES = (
    "torcs-data", "flightgear-data-base", "warzone2100-data", "openarena-data", "sonic-pi-samples", "trigger-rally-data", "xmoto-data", "neverball-data",
    "hedgewars-data", "supertux-data", "megaglest-data", "endless-sky-data", "colobot-common-sounds", "lugaru-data", "scorched3d-data", "freedroidrpg-data",
    "ufoai-sound", "searchandrescue-data", "warmux-data", "freeorion-data", "extremetuxracer-data", "naev-data",
)  # fmt: skip
AUDIO, ARCHIVES = {".wav", ".ogg", ".flac"}, {".pk3", ".wz", ".zip"}
# voices and music are no noise; tonal samples of instruments are no noise either
NOT_NOISE = re.compile(
    r"voice|speech|music|talk|taunt|vocal|radio|announc|/player/|/feedback/|mission|tutorial|dialog|song|theme|track|atc|copilot|gpws|mk-viii|"
    r"_(ack|select|sel|attack|die)_?\d|/(pcv|com|col|det|res_|build|nme)\w*\.|/\d*(min)?\.ogg|contact_sound|attack_sound|_sound_\d|carry|hands|cant|"
    r"scream|death|hurt\d|die\d|suicide|descend|climb|monitor|maintain|traffic|checklist|glove|vertical|hellish|hell_|good_morning|dracula|chant|"
    r"tabla|guit_|bass_|loop_(amen|break|comp|garz|mehack|mika|perc|safari|tabla|weird|elect|drone)|ambi_(choir|piano)|/(bd|sn|drum|elec|mehackit|glitch)_",
    re.IGNORECASE,
)
SECONDS = (0.25, 60.0)
HELD_OUT = {"loop_3d_printer"}  # the bundled demo and the 48 kHz test pairs use these: never trained on
PACKAGE_MINUTES = 15.0  # so that one big game does not drown the others


def unpack(package: str, folder: Path) -> None:
    """Download and extract the audio, archives and copyright of one package."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, capture_output=True)
    deb = next(folder.glob(f"{package}_*.deb"))
    wanted = [f"*{s}" for s in sorted(AUDIO | ARCHIVES)] + ["*/copyright"]
    tar = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    subprocess.run(["tar", "x", "-C", str(folder), "--no-same-owner", "--wildcards", *wanted], stdin=tar.stdout, capture_output=True, check=False)
    tar.wait()
    deb.unlink()
    for path in [p for p in folder.rglob("*") if p.suffix in ARCHIVES]:
        try:
            with zipfile.ZipFile(path) as z:
                for name in z.namelist():
                    if Path(name).suffix.lower() in AUDIO and ".." not in name:
                        z.extract(name, path.with_suffix(""))
        except zipfile.BadZipFile:
            tqdm.write(f"{package}: {path.name} is no zip archive, left out")
        path.unlink()


def licence(folder: Path) -> str:
    found: list[str] = []
    for path in folder.rglob("copyright"):
        found += re.findall(r"^License:\s*(\S.*)$", path.read_text(errors="replace"), re.MULTILINE)
    return "; ".join(sorted(set(found))[:8]) or "see the package"


def noises(folder: Path) -> Iterator[tuple[Path, float]]:
    """Usable files with their seconds, in a fixed order."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file()):
        if NOT_NOISE.search(str(path.relative_to(folder))):
            continue
        try:
            seconds = sf.info(path).duration
        except sf.LibsndfileError:
            continue
        if SECONDS[0] <= seconds <= SECONDS[1]:
            yield path, seconds


def gather(packages: list[str], out: Path, exclude: set[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    for package in tqdm(packages, unit="package"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                unpack(package, folder)
            except (subprocess.CalledProcessError, StopIteration):
                tqdm.write(f"{package}: not to be had from this machine's package lists, left out")
                failed += 1
                continue
            terms, spent = licence(folder), 0.0
            files = list(noises(folder))
            stride = max(1.0, sum(s for _, s in files) / (PACKAGE_MINUTES * 60))  # spread over the whole package
            due = 0.0
            for i, (path, seconds) in enumerate(files):
                if i < due or path.stem in exclude:
                    continue
                due += stride
                target = out / package / f"{len(rows):05d}_{re.sub(r'[^A-Za-z0-9]+', '_', path.stem)}{path.suffix.lower()}"
                target.parent.mkdir(exist_ok=True)
                shutil.copy(path, target)
                spent += seconds
                rows.append(
                    {
                        "path": target.relative_to(out),
                        "source": f"Debian package {package}",
                        "licence": terms,
                        "label": path.stem.replace("_", " "),
                        "noise_id": f"{package}/{path.stem}",
                    }
                )
            tqdm.write(f"{package}: {spent / 60:.1f} min of {sum(s for _, s in files) / 60:.1f}; licence {terms[:60]}")
    with (out / "manifest.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["path", "source", "licence", "label", "noise_id"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} files in {out}")
    return failed


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--packages", nargs="+", default=list(PACKAGES))
    p.add_argument("--exclude-ids", type=Path, help="file stems to leave out, one a line (recordings that a test set uses)")
    a = p.parse_args()
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        print("gather: needs apt-get and dpkg-deb, so a Debian or Ubuntu machine", file=sys.stderr)
        return 2
    exclude = HELD_OUT | (set(a.exclude_ids.read_text().split()) if a.exclude_ids else set())
    return 1 if gather(a.packages, a.out, exclude) == len(a.packages) else 0


if __name__ == "__main__":
    raise SystemExit(main())

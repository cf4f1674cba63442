"""How many workers a cluster should have, by the slots that are used."""

from __future__ import annotations

from dataclasses import dataclass

BUSY = 0.8  # share of the slots used from which one more worker is wanted
CALM = 0.5  # share of the slots that would be left without the largest worker, up to which it is not needed


@dataclass(frozen=True)
class Sizes:
    """How many workers, at least and at most, and what Ray is to reserve for each."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


def change(used: int, capacities: list[int], sizes: Sizes, starting: int) -> int:
    """+1: another worker is wanted, -1: one can go, 0: neither. used: slots of the ready workers, capacities: what each of them has;
    starting: workers that are not ready yet."""
    count = len(capacities) + starting
    if count < sizes.least or (not starting and count < sizes.most and used >= BUSY * sum(capacities)):
        return 1
    if not starting and count > sizes.least and used <= CALM * (sum(capacities) - max(capacities)):
        return -1
    return 0

"""What all sizes have in common that are saved beside weights as JSON and read back from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Sizes:
    """Whole numbers and switches by name. WHOSE: what they are of, for the line that says what is unknown."""

    WHOSE: ClassVar[str]

    def validate(self) -> Self:
        """Return self, or raise ValueError with a line that says which size does not fit."""
        return self

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """ValueError, with one line, for names that are unknown and for sizes that do not fit."""
        known: dict[str, Any] = {f.name: bool if f.type == "bool" else int for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown {cls.WHOSE} setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**{k: known[k](v) for k, v in values.items()}).validate()

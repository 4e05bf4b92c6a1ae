"""How many samples were used, how many were not, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: The fraction of rejected samples is looked at when so many were seen.
ENOUGH = 20
#: So many rejected samples are named.
NAMED = 5


class RejectedError(Exception):
    """A sample cannot be used.

    Args:
        reason: in few words, the same for all samples with this fault.
        detail: of this sample.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Rejection:
    """A sample that is not used.

    Attributes:
        name: of its file, or where it is.
        reason: in few words, the same for all samples with this fault.
        detail: of this sample; may be empty.
    """

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Counts:
    """Accepted and rejected samples.

    Attributes:
        accepted: how many were used.
        reasons: how many were rejected, by reason.
        examples: the first few that were rejected, with their faults.
    """

    accepted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """How many were not used."""
        return sum(self.reasons.values())

    def reject(self, rejection: Rejection) -> None:
        """Count one more that is not used."""
        self.reasons[rejection.reason] = self.reasons.get(rejection.reason, 0) + 1
        if len(self.examples) < NAMED and str(rejection) not in self.examples:
            self.examples.append(str(rejection))

    def add(self, other: Counts) -> None:
        """Count all that ``other`` counted."""
        self.accepted += other.accepted
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        fresh = [text for text in other.examples if text not in self.examples]
        self.examples = (self.examples + fresh)[:NAMED]

    def plus(self, other: Counts) -> Counts:
        """Both counts together."""
        both = Counts(self.accepted, dict(self.reasons), list(self.examples))
        both.add(other)
        return both

    def check(self, max_rejected: float, final: bool = False) -> None:
        """Look at the fraction that was rejected, once there is enough to judge by.

        Of n samples, p n may be rejected at the end, and before it two standard deviations of
        chance more: data with few bad samples must not fail because those came first.

        Args:
            max_rejected: the largest fraction allowed, p.
            final: whether all samples were seen; then few are enough.

        Raises:
            ValueError: if the fraction is larger, or at the end no sample was accepted.
        """
        rejected, seen = self.rejected, self.accepted + self.rejected
        if not final and seen < ENOUGH:
            return
        chance = 0.0 if final else 2 * math.sqrt(max_rejected * seen)
        if rejected > max_rejected * seen + chance:
            raise ValueError(
                f"{rejected:,} of {seen:,} samples were rejected, a fraction of "
                f"{rejected / seen:.2f}; allowed: max_rejected={max_rejected:g}. {self._why()}"
            )
        if final and not self.accepted:
            raise ValueError(
                f"no sample was accepted, {rejected:,} were rejected; allowed: at least one. "
                f"{self._why()}"
            )

    def __str__(self) -> str:
        text = f"{self.accepted:,} samples accepted, {self.rejected:,} rejected"
        return f"{text} ({self._by_reason()})" if self.reasons else text

    def _by_reason(self) -> str:
        most_first = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        return ", ".join(f"{reason}: {count:,}" for reason, count in most_first)

    def _why(self) -> str:
        if not self.reasons:
            return "There was none"
        return f"By reason: {self._by_reason()}. The first: {'; '.join(self.examples)}"

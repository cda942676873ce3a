"""What the figures mean: medians, ratios, the budgets of the project, and how they are printed.

Nothing here measures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round. Times are seconds, memory is bytes."""

    requests: int
    seconds: float
    cpu: float
    """What the proxy, and all its processes, took of a CPU in that time."""
    p50: float
    p99: float
    resident: int

    @property
    def cpu_per_request(self) -> float:
        return self.cpu / self.requests

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


Round: TypeAlias = Mapping[str, Sample]
"""The samples of one round, by proxy."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What issue or design allows. *of* computes the figure from one round; the verdict is on the median of rounds."""

    text: str
    limit: float
    needs: tuple[str, ...]
    """The proxies without which there is no figure."""
    of: Callable[[Round], float]
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures beside their budget, one from each round; none when a proxy that they need did not run."""

    text: str
    figures: tuple[float, ...]
    limit: float
    unit: str

    @property
    def figure(self) -> float | None:
        return statistics.median(self.figures) if self.figures else None

    @property
    def met(self) -> bool:
        return self.figure is not None and self.figure <= self.limit

    def __str__(self) -> str:
        allowed = f"at most {self.limit:g} {self.unit}"
        if self.figure is None:
            return f"{self.text}: not measured ({allowed})"
        low, high = min(self.figures), max(self.figures)
        spread = f"; {low:.2f} to {high:.2f} over {len(self.figures)} rounds" if len(self.figures) > 1 else ""
        return f"{self.text}: {self.figure:.2f} {self.unit} ({allowed}: {'met' if self.met else 'MISSED'}{spread})"


def cpu_ratio(subject: str, peer: str, limit: float) -> Budget:
    """Let *subject* take at most *limit* times the CPU per request of *peer*."""
    return Budget(
        f"CPU per request, {subject} / {peer}",
        limit,
        (subject, peer),
        lambda samples: samples[subject].cpu_per_request / samples[peer].cpu_per_request,
    )


def cpu_difference(subject: str, peer: str, limit: float) -> Budget:
    """Let *subject* take at most *limit* us of CPU per request more than *peer*."""
    return Budget(
        f"CPU per request, {subject} - {peer}",
        limit,
        (subject, peer),
        lambda samples: (samples[subject].cpu_per_request - samples[peer].cpu_per_request) * 1e6,
        unit="us",
    )


def median_ratio(subject: str, peer: str, limit: float) -> Budget:
    """Let the p50 of *subject* be at most *limit* times that of *peer*."""
    return Budget(
        f"p50, {subject} / {peer}",
        limit,
        (subject, peer),
        lambda samples: samples[subject].p50 / samples[peer].p50,
    )


def tail_ratio(subject: str, limit: float) -> Budget:
    """Let the p99 of *subject* be at most *limit* times its own p50."""
    return Budget(
        f"p99 / p50, {subject}", limit, (subject,), lambda samples: samples[subject].p99 / samples[subject].p50
    )


def judge(budget: Budget, rounds: Sequence[Round]) -> Verdict:
    """Hold *budget* against the rounds in which all its proxies ran.

    The ratio is taken within each round, where the proxies ran side by side, and the median over the rounds:
    a machine that slows down for one round moves both sides of that ratio, and no other.
    """
    figures = tuple(budget.of(samples) for samples in rounds if all(name in samples for name in budget.needs))
    return Verdict(budget.text, figures, budget.limit, budget.unit)


COLUMNS: Final = ("", "us/request", "requests/s", "p50 ms", "p99 ms", "RSS MiB")


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """Yield the lines of a table: a row a proxy, each figure the median of the rounds."""
    rows = [COLUMNS]
    for name in _names(rounds):
        samples = [samples[name] for samples in rounds if name in samples]
        rows.append(
            (
                name,
                f"{_median(sample.cpu_per_request for sample in samples) * 1e6:.1f}",
                f"{_median(sample.rate for sample in samples):.0f}",
                f"{_median(sample.p50 for sample in samples) * 1e3:.3f}",
                f"{_median(sample.p99 for sample in samples) * 1e3:.3f}",
                f"{_median(sample.resident for sample in samples) / 2**20:.1f}",
            )
        )
    for name, *figures in rows:
        yield f"  {name:<16}" + "".join(f"{figure:>12}" for figure in figures)


def ratios(rounds: Sequence[Round], peer: str) -> str:
    """Return one line: the CPU per request of every proxy, where that of *peer* is 1; empty without *peer*."""
    figures = []
    for name in _names(rounds):
        verdict = judge(cpu_ratio(name, peer, 0), rounds)
        if verdict.figure is not None:
            figures.append(f"{name} {verdict.figure:.2f}")
    return f"  CPU per request, {peer} = 1: {', '.join(figures)}" if figures else ""


def _names(rounds: Sequence[Round]) -> list[str]:
    return list(dict.fromkeys(name for samples in rounds for name in samples))


def _median(figures: Iterable[float]) -> float:
    return statistics.median(figures)

"""Figures: what the gateway and its plugins count, as integers in plain slots that somebody may read.

A *family* has a name, a unit and label keys; each combination of label values has a *series*, which is looked up once
and then written to directly. Reading, naming and sending are not the business of this file: a plugin that exports
metrics reads the families, and where none does, a figure costs the addition.

Processes that are one gateway add up what they have: a family is `packed` by one, and added by another.

Names, kinds and units are those of OpenTelemetry's metrics; a level is its up-down counter.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

from gw.limits import MAX_LABEL_VALUES, MAX_SERIES

__all__ = ["OVERFLOW", "Count", "Distribution", "Family", "Figures", "Kind"]

Kind: TypeAlias = Literal["counter", "level", "histogram"]
Reader: TypeAlias = Callable[[], Iterable[tuple[tuple[str, ...], float]]]

OVERFLOW: Final = "__overflow__"
"""Stands for every label value beyond the bound of its key."""


class Count:
    """A number that only grows (of a counter), or that grows and shrinks (of a level)."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0) -> None:
        self.value = value

    def add(self, amount: float = 1) -> None:
        self.value += amount

    def __repr__(self) -> str:
        return f"<Count {self.value}>"


class Distribution:
    """How often values fell between bounds, each bound belonging to the bucket below it, and what they add up to."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: list[Any] | None = None
        """For each bucket what `record` was last given as its example; `None` until there is one."""

    def record(self, value: float, exemplar: Any = None) -> None:
        """Count *value*; *exemplar*, if given, says where it came from."""
        at = bisect_left(self.bounds, value)
        self.counts[at] += 1
        self.sum += value
        if exemplar is not None:
            if self.exemplars is None:
                self.exemplars = [None] * len(self.counts)
            self.exemplars[at] = exemplar

    def __repr__(self) -> str:
        return f"<Distribution of {sum(self.counts)}, {self.sum:g} in all>"


S = TypeVar("S", Count, Distribution)


class Family(Generic[S]):
    """Every series of one name. *labels* are the keys, in the order in which `at` takes their values."""

    __slots__ = (
        "_overflowed",
        "_readers",
        "_seen",
        "_series",
        "bounds",
        "description",
        "kind",
        "labels",
        "name",
        "since",
        "unit",
    )

    def __init__(
        self,
        name: str,
        kind: Kind,
        unit: str,
        description: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
        overflowed: Callable[[str], None],
    ) -> None:
        self.name, self.kind, self.unit, self.description = name, kind, unit, description
        self.labels, self.bounds = labels, bounds
        self.since = time.time_ns()
        """When counting began, in nanoseconds since 1970."""
        self._series: dict[tuple[str, ...], S] = {}
        self._seen: tuple[set[str], ...] = tuple(set() for _ in labels)
        self._readers: list[Reader] = []
        self._overflowed = overflowed

    def at(self, *values: str) -> S:
        """Return the series of these label values, made if need be; an empty value leaves its label out.

        Keep what it returns where that is possible. A value beyond MAX_LABEL_VALUES of its key, and a combination
        beyond MAX_SERIES, count as ``__overflow__``.
        """
        series = self._series.get(values)
        return self._make(values) if series is None else series

    def _make(self, values: tuple[str, ...]) -> S:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(values)} of them")
        bounded = list(values)
        for index, (value, seen) in enumerate(zip(values, self._seen, strict=True)):
            if value not in seen and len(seen) >= MAX_LABEL_VALUES:
                bounded[index] = OVERFLOW
                self._overflowed(self.labels[index])
        if len(self._series) >= MAX_SERIES and tuple(bounded) not in self._series:
            bounded = [OVERFLOW] * len(bounded)
            self._overflowed("*")
        place = tuple(bounded)
        if (series := self._series.get(place)) is None:
            for value, seen in zip(place, self._seen, strict=True):
                if value != OVERFLOW:
                    seen.add(value)
            series = self._series[place] = cast("S", Distribution(self.bounds) if self.kind == "histogram" else Count())
        return series

    def watch(self, read: Reader) -> Callable[[], None]:
        """Ask *read* for pairs of label values and number whenever the family is read; return what ends that.

        For numbers that somebody holds already, such as the length of a queue. Readers with the same labels add up.
        """
        self._readers.append(read)

        def end() -> None:
            self._readers.remove(read)

        return end

    def rows(self) -> dict[tuple[str, ...], S]:
        """Return every series by its label values, those of the readers included."""
        rows: dict[tuple[str, ...], Any] = dict(self._series)
        for read in self._readers:
            for values, value in read():
                held = rows.get(values)
                rows[values] = Count(value + (0 if held is None else held.value))
        return rows

    def packed(self) -> dict[str, Any]:
        """Return all of it, ready for JSON: for `Figures.add` in another process."""
        rows: list[tuple[Any, ...]] = []
        for values, each in self.rows().items():
            if isinstance(each, Count):
                rows.append((values, each.value))
            else:
                rows.append((values, each.counts, each.sum, each.exemplars))
        what = {key: getattr(self, key) for key in ("name", "kind", "unit", "description", "labels", "bounds", "since")}
        return what | {"rows": rows}

    def _add(self, values: tuple[str, ...], *numbers: Any) -> None:
        series: Any = self._series.get(values)
        if series is None:
            series = Distribution(self.bounds) if self.kind == "histogram" else Count()
            self._series[values] = series
        if self.kind != "histogram":
            series.value += numbers[0]
            return
        counts, total, exemplars = numbers
        series.counts = [one + other for one, other in zip(series.counts, counts, strict=True)]
        series.sum += total
        series.exemplars = series.exemplars or exemplars

    def __repr__(self) -> str:
        return f"<Family {self.name} of {len(self._series)} series>"


class Figures:
    """The families of one gateway. They outlive its generations: what is counted goes on after a reload."""

    def __init__(self) -> None:
        self._families: dict[str, Family[Any]] = {}
        self._overflows = self.counter(
            "gw.otel.cardinality_overflow", "{values}", "Label values that were counted as __overflow__", ("label_key",)
        )

    def counter(self, name: str, unit: str, description: str, labels: tuple[str, ...] = ()) -> Family[Count]:
        """Return the family *name* of numbers that only grow, such as ``{requests}``.

        Asking again returns the same one; raises `ValueError` if it is something else already.
        """
        return self._family(name, "counter", unit, description, labels, ())

    def level(self, name: str, unit: str, description: str, labels: tuple[str, ...] = ()) -> Family[Count]:
        """Return the family *name* of numbers that go up and down; otherwise as `counter`."""
        return self._family(name, "level", unit, description, labels, ())

    def histogram(
        self, name: str, unit: str, description: str, labels: tuple[str, ...] = (), *, bounds: tuple[float, ...]
    ) -> Family[Distribution]:
        """Return the family *name* of distributions with these rising upper *bounds*; otherwise as `counter`.

        With other bounds than before it begins anew: what was counted between the old ones cannot be moved.
        """
        return self._family(name, "histogram", unit, description, labels, bounds)

    def _family(
        self,
        name: str,
        kind: Kind,
        unit: str,
        description: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
    ) -> Family[Any]:
        known = self._families.get(name)
        if known is not None and (known.kind, known.unit, known.labels) != (kind, unit, labels):
            raise ValueError(f"figure {name!r} is a {known.kind} in {known.unit} of {known.labels} already")
        if known is None or known.bounds != bounds:
            known = self._families[name] = Family(name, kind, unit, description, labels, bounds, self._count_overflow)
        return known

    def add(self, families: Iterable[Mapping[str, Any]], *, levels: bool = True) -> None:
        """Add what `Family.packed` returned in another process; without *levels* only what never shrinks.

        Processes that reload may disagree for a moment on what a name is: then the first one is right.
        """
        for each in families:
            name, kind, unit = each["name"], each["kind"], each["unit"]
            labels, bounds = tuple(each["labels"]), tuple(each["bounds"])
            known = self._families.get(name)
            if kind == "level" and not levels:
                continue
            if known is not None and (known.kind, known.unit, known.labels, known.bounds) != (
                kind,
                unit,
                labels,
                bounds,
            ):
                continue
            family = self._family(name, kind, unit, each["description"], labels, bounds)
            family.since = min(family.since, each["since"])
            for values, *numbers in each["rows"]:
                family._add(tuple(values), *numbers)

    def _count_overflow(self, label: str) -> None:
        self._overflows.at(label).value += 1

    def __iter__(self) -> Iterator[Family[Any]]:
        return iter(tuple(self._families.values()))

    def __repr__(self) -> str:
        return f"<Figures {len(self._families)} families>"

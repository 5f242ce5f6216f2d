"""Series of numbers for Prometheus, written as text faster than its own client does.

prometheus_client takes locks that one thread does not need for each number, and escapes every label
again for each scrape. Here a series makes its labels once, and keeps its lines for as long as its
numbers do not change. A `Family` is also a collector of prometheus_client, so that a registry has
all series; a test compares both texts byte by byte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# From a proxied cache hit (5 ms) to an hour: vLLM's cold starts take minutes, and a request may
# wait for several of them.
SECONDS_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600,
)  # fmt: skip

_BOUNDS = [*(str(float(bound)) for bound in SECONDS_BUCKETS), "+Inf"]

PLAIN_BELOW = 1e6
"""From here on Prometheus' text format has exponents."""

K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound="Series")
Sample = tuple[str, Mapping[str, str], float]
"""What follows the family's name, labels, value."""


def _number(value: float) -> str:
    if 0 <= value < PLAIN_BELOW and value == int(value):
        return f"{int(value)}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _labelled(labels: Mapping[str, str]) -> str:
    """Labels as they are written: sorted, escaped, in braces; nothing if there are none."""
    pairs = (
        f'{name}="{value}"'
        for name, raw in sorted(labels.items())
        for value in [raw.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")]
    )
    joined = ",".join(pairs)
    return f"{{{joined}}}" if joined else ""


class Series:
    """What a family has for one set of labels.

    Args:
        name: As it is written, so with `_total` for counters.
        labels: By name.
    """

    __slots__ = ("labels",)

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:  # noqa: ARG002
        self.labels = labels

    def text(self) -> str:
        """Its lines."""
        raise NotImplementedError

    def samples(self) -> Iterator[Sample]:
        """Its lines, for prometheus_client."""
        raise NotImplementedError


class Value(Series):
    """One number: a counter's or a gauge's."""

    __slots__ = ("_suffix", "_written", "value")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        super().__init__(name, labels)
        self._suffix = "_total" if name.endswith("_total") else ""
        self._written = name + _labelled(labels)
        self.value = 0.0

    def inc(self) -> None:
        """One more."""
        self.value += 1

    def set(self, value: float) -> None:
        """It is this much now."""
        self.value = value

    def text(self) -> str:
        """See `Series`."""
        return f"{self._written} {_number(self.value)}\n"

    def samples(self) -> Iterator[Sample]:
        """See `Series`."""
        yield self._suffix, self.labels, self.value


class Histogram(Series):
    """How long something took, each time."""

    __slots__ = ("_buckets", "_count_of_text", "_sum_s", "_template", "_text")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        super().__init__(name, labels)
        self._buckets = [0] * len(_BOUNDS)
        self._sum_s = 0.0
        self._template = "".join(
            f"{name}{suffix}{_labelled(each)}".replace("%", "%%") + " %s\n"
            for suffix, each, _ in self.samples()
        )
        self._text = ""
        self._count_of_text = -1

    def observe(self, seconds: float) -> None:
        """It has taken so long once more."""
        self._buckets[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self._sum_s += seconds

    def text(self) -> str:
        """See `Series`."""
        count = sum(self._buckets)
        if count != self._count_of_text:
            sums = [*accumulate(self._buckets), count, self._sum_s]
            self._text = self._template % tuple(map(_number, sums))
            self._count_of_text = count
        return self._text

    def samples(self) -> Iterator[Sample]:
        """See `Series`."""
        count = 0
        for bound, more in zip(_BOUNDS, self._buckets, strict=True):
            count += more
            yield "_bucket", {**self.labels, "le": bound}, float(count)
        yield "_count", self.labels, float(count)
        yield "_sum", self.labels, self._sum_s


class Latest(Generic[K]):
    """The keys that were used last, at most so many.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: dict[K, None] = {}  # used last: last

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def use(self, key: K) -> None:
        """This one is used now."""
        self._keys.pop(key, None)
        self._keys[key] = None
        if len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]


class Family(Collector, Generic[S]):
    """All series of one name.

    Args:
        kind: What each of them is.
        name: Without the `_total` of a counter.
        type_: counter, gauge or histogram.
        text: What it says.
        labels: The names of its labels.
        latest: Those that are exported, by their first two labels; None: all are. The others keep
            their numbers, and go on from there when they are used again.
    """

    def __init__(
        self,
        kind: type[S],
        name: str,
        type_: str,
        text: str,
        labels: Iterable[str],
        *,
        latest: Latest[tuple[str, ...]] | None = None,
    ) -> None:
        self._kind = kind
        self._about = name, text, type_
        self._written = name + ("_total" if type_ == "counter" else "")
        self._head = f"# HELP {self._written} {text}\n# TYPE {self._written} {type_}\n"
        self._labelnames = tuple(labels)
        self._latest = latest
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series with these labels, which is exported from now on."""
        if self._latest is not None:
            self._latest.use(values[:2])
        series = self._series.get(values)
        if series is None:
            labels = dict(zip(self._labelnames, values, strict=True))
            series = self._series[values] = self._kind(self._written, labels)
        return series

    def _exported(self) -> Iterator[S]:
        latest = self._latest
        for values, series in self._series.items():
            if latest is None or values[:2] in latest:
                yield series

    def text(self) -> str:
        """All of it in the text format."""
        return self._head + "".join([series.text() for series in self._exported()])

    def collect(self) -> Iterator[Metric]:
        """All of it for prometheus_client; see `Collector`."""
        name, text, type_ = self._about
        metric = Metric(name, text, type_)
        # As prometheus_client's own families have them.
        metric._labelnames = self._labelnames  # type: ignore[attr-defined]  # noqa: SLF001
        for series in self._exported():
            for suffix, labels, value in series.samples():
                metric.add_sample(name + suffix, dict(labels), value)
        yield metric


Row = tuple[tuple[str, ...], float]
"""The values of the labels, and the number."""


class LiveGauges(Collector):
    """Gauges that are read from the source when scraped.

    Args:
        abouts: Of each family its name, what it says, and its labels.
        read: Gives the rows of each, in the same order.
    """

    def __init__(
        self,
        abouts: Sequence[tuple[str, str, tuple[str, ...]]],
        read: Callable[[], Sequence[Iterable[Row]]],
    ) -> None:
        self._abouts = abouts
        self._read = read

    def _families(self) -> Iterator[Family[Value]]:
        # Made for each scrape, since models come and go.
        for (name, text, labels), rows in zip(self._abouts, self._read(), strict=True):
            family = Family(Value, name, "gauge", text, labels)
            for values, number in rows:
                family.labels(*values).set(number)
            yield family

    def text(self) -> str:
        """All of it in the text format."""
        return "".join([family.text() for family in self._families()])

    def collect(self) -> Iterator[Metric]:
        """All of it for prometheus_client; see `Collector`."""
        for family in self._families():
            yield from family.collect()

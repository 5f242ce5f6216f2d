"""Prometheus series, rendered faster than by prometheus_client.

prometheus_client takes a lock for each number, which a single thread does not need, and escapes all
labels at each scrape. Here a series renders its labels once, and keeps its lines as long as its
numbers do not change. A `Family` is also a collector for prometheus_client, so that a registry has
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
"""From this value on, Prometheus' text format uses exponents."""

K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound="Series")
Sample = tuple[str, Mapping[str, str], float]
"""The suffix to the family's name, the labels, and the value."""


def _number(value: float) -> str:
    if 0 <= value < PLAIN_BELOW and value == int(value):
        return f"{int(value)}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _labelled(labels: Mapping[str, str]) -> str:
    """Return the labels as text: sorted, escaped and in braces, or empty if there are none."""
    pairs = (
        f'{name}="{value}"'
        for name, raw in sorted(labels.items())
        for value in [raw.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")]
    )
    joined = ",".join(pairs)
    return f"{{{joined}}}" if joined else ""


class Series:
    """The numbers of a family for one set of label values.

    Args:
        name: The family's name, with `_total` for counters.
        labels: Label values by name.
    """

    __slots__ = ("labels",)

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:  # noqa: ARG002
        self.labels = labels

    def text(self) -> str:
        """Return its lines in the text format."""
        raise NotImplementedError

    def samples(self) -> Iterator[Sample]:
        """Yield its lines as samples for prometheus_client."""
        raise NotImplementedError


class Value(Series):
    """The number of a counter or gauge."""

    __slots__ = ("_suffix", "_written", "value")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        super().__init__(name, labels)
        self._suffix = "_total" if name.endswith("_total") else ""
        self._written = name + _labelled(labels)
        self.value = 0.0

    def inc(self) -> None:
        self.value += 1

    def set(self, value: float) -> None:
        self.value = value

    def text(self) -> str:
        return f"{self._written} {_number(self.value)}\n"

    def samples(self) -> Iterator[Sample]:
        yield self._suffix, self.labels, self.value


class Histogram(Series):
    """A histogram of durations in seconds."""

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
        self._buckets[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self._sum_s += seconds

    def text(self) -> str:
        count = sum(self._buckets)
        if count != self._count_of_text:
            sums = [*accumulate(self._buckets), count, self._sum_s]
            self._text = self._template % tuple(map(_number, sums))
            self._count_of_text = count
        return self._text

    def samples(self) -> Iterator[Sample]:
        count = 0
        for bound, more in zip(_BOUNDS, self._buckets, strict=True):
            count += more
            yield "_bucket", {**self.labels, "le": bound}, float(count)
        yield "_count", self.labels, float(count)
        yield "_sum", self.labels, self._sum_s


class Latest(Generic[K]):
    """The most recently used keys.

    Args:
        most: Number of keys to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: dict[K, None] = {}  # the most recently used one last

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def use(self, key: K) -> None:
        """Note that a key is used now; drop the least recently used one if there are too many."""
        self._keys.pop(key, None)
        self._keys[key] = None
        if len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]


class Family(Collector, Generic[S]):
    """All series of one name.

    Args:
        kind: The class of the series.
        name: The name, without the `_total` of a counter.
        type_: counter, gauge or histogram.
        text: The help text.
        labels: The names of the labels.
        latest: The series to export, by their first two labels; None: all. The others keep their
            numbers, so that counters do not restart from 0 when they are used again.
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
        """Return the series with these label values, and export it from now on."""
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
        return self._head + "".join([series.text() for series in self._exported()])

    def collect(self) -> Iterator[Metric]:
        name, text, type_ = self._about
        metric = Metric(name, text, type_)
        # The families of prometheus_client have this attribute, too.
        metric._labelnames = self._labelnames  # type: ignore[attr-defined]  # noqa: SLF001
        for series in self._exported():
            for suffix, labels, value in series.samples():
                metric.add_sample(name + suffix, dict(labels), value)
        yield metric


Row = tuple[tuple[str, ...], float]
"""The label values, and the number."""


class LiveGauges(Collector):
    """Gauges that are read from the source at each scrape.

    Args:
        abouts: Name, help text and label names of each family.
        read: Returns the rows of each family, in the same order.
    """

    def __init__(
        self,
        abouts: Sequence[tuple[str, str, tuple[str, ...]]],
        read: Callable[[], Sequence[Iterable[Row]]],
    ) -> None:
        self._abouts = abouts
        self._read = read

    def _families(self) -> Iterator[Family[Value]]:
        # Built at each scrape, since models are added and removed.
        for (name, text, labels), rows in zip(self._abouts, self._read(), strict=True):
            family = Family(Value, name, "gauge", text, labels)
            for values, number in rows:
                family.labels(*values).set(number)
            yield family

    def text(self) -> str:
        return "".join([family.text() for family in self._families()])

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            yield from family.collect()

"""Numbers on the command line of `llmux simulate`."""

from __future__ import annotations

import math
from typing import Any

import click

from llmux.simulate.arrivals import LONGEST_S

MAX_COUNT = 1_000_000
"""Largest number of models, slots or agents; more would run out of memory."""


class Number(click.FloatRange):
    """A number in a range; NaN is rejected."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


SECONDS = Number(0, LONGEST_S)
COUNT = click.IntRange(1, MAX_COUNT)


def parse_needs(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> list[float] | None:
    if value is None:
        return None
    try:
        needs = [float(part) for part in value.split(",")]
    except ValueError:
        needs = []
    if not needs or not all(0 < need <= MAX_COUNT for need in needs):
        raise click.BadParameter(f"{value!r} is no list of numbers like 60,40,20,4")
    return needs

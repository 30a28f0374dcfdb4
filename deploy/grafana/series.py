"""What a live Prometheus answers to the queries of a panel."""

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.grafana.model import Query

ASK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel; what Prometheus had no sample of is NaN in none of them: it is not there."""

    labels: Mapping[str, str]
    times: tuple[float, ...]  # [T] seconds since 1970
    values: tuple[float, ...]  # [T]

    @property
    def last(self) -> float:
        """The last value that is a number; NaN if none is."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), math.nan)


def fill(expression: str, *, run: str = ".*", process: str = ".*", interval: str = "1m") -> str:
    """`expression` with values for Grafana's variables. Raises `ValueError` for a variable that is not known here."""
    values = {"run": run, "process": process, "__rate_interval": interval}

    def value(found: re.Match[str]) -> str:
        try:
            return values[found[1]]
        except KeyError:
            raise ValueError(f"{found[0]} in {expression}: known are {', '.join(values)}") from None

    return re.sub(r"\$(\w+)", value, expression)


def ask(prometheus: str, path: str, **parameters: str | float) -> Any:
    """The data of an answer of Prometheus' API. Raises `ValueError` with its words, `OSError` when it is not there."""
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{query}", timeout=ASK_SECONDS) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{prometheus} on {parameters}: {error.read().decode()[:500]}") from None


def over_time(prometheus: str, expression: str, *, start: float, end: float, step: float) -> list[Series]:
    """The series of an expression between two times, in seconds since 1970, a value every `step` seconds."""
    found = ask(prometheus, "query_range", query=expression, start=start, end=end, step=step)["result"]
    return [
        Series(
            each["metric"],
            tuple(float(time) for time, _ in each["values"]),
            tuple(float(value) for _, value in each["values"]),
        )
        for each in found
    ]


def name(query: Query, labels: Mapping[str, str]) -> str:
    """What the legend calls a series."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), query.legend).strip()

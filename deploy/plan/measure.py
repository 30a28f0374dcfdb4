"""`python -m deploy.plan measure RUN seconds=30 every=5`: the speeds of a run that goes on, from its own metrics.

It asks the broker for its /targets, as Prometheus does, looks at every actor's and verifier's /metrics each `every`
seconds, and writes RUN/rates.json. The learner's speed is taken from the steps of the same time.
"""

import json
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from prometheus_client.parser import text_string_to_metric_families

from deploy.plan import rates, records
from deploy.plan.rates import Rates
from deploy.plan.records import Interval

LATE = 3.0  # a look that comes so many times later than usual was held up, and so was what it looks at
ASK_SECONDS = 5.0  # longest wait for one answer
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
USAGE = "give a run that goes on, as in `python -m deploy.plan measure runs/quickstart seconds=30 every=5`"
COUNTED = {  # the names that are read, summed over their labels
    "actor": (
        "actor_step_seconds_count",
        "actor_idle_seconds_total",
        "actor_generated_tokens_total",
        "actor_weight_swap_seconds_count",
        "actor_weight_swap_seconds_sum",
        "actor_weight_fetch_seconds_count",
        "actor_weight_fetch_seconds_sum",
    ),
    "verifier": ("verifier_check_seconds_sum", "verifier_verdicts_total"),
}

CLOCK = "clock"  # of this process, when it looked

Look = dict[str, dict[str, float]]  # process → metric → value
Pair = tuple[dict[str, float], dict[str, float]]  # of one process, at two looks


@dataclass(frozen=True, slots=True)
class Process:
    """An entry of /targets."""

    role: str
    name: str
    address: str


def measure(directory: Path, seconds: float, every: float) -> Rates:
    """Watch the run of `directory`. Raises `ValueError` when it does not go on, or nothing happens in it meanwhile."""
    before = records.steps(directory)[-1]["step"]
    looks = [look(directory)]
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(min(every, max(ends - time.monotonic(), 0.0)))
        looks.append(look(directory))
    rows = [row for row in records.steps(directory) if row["step"] > before]
    if len(rows) < 2:
        raise ValueError(f"{directory}: {len(rows)} steps in {seconds:g} s; a measurement needs two (seconds=)")
    return evaluate(records.base(directory, rows), looks)


def evaluate(base: Rates, looks: list[Look]) -> Rates:
    """The rates with the speeds that the looks give. Raises `ValueError` when no actor did anything."""
    intervals = [
        Interval(
            steps=rise(old, new, "actor_step_seconds_count"),
            tokens=rise(old, new, "actor_generated_tokens_total"),
            seconds=busy_seconds(old, new),
        )
        for old, new in _unpaused([pair for before, after in pairwise(looks) for pair in _both(before, after)])
        if "actor_step_seconds_count" in new
    ]
    step_seconds, rollout_seconds, note = records.engine_step(intervals, base.actor.max_num_seqs)
    whole = list(_both(looks[0], looks[-1]))

    def mean(numerator: str, denominator: str) -> float:
        count = sum(rise(old, new, denominator) for old, new in whole)
        return sum(rise(old, new, numerator) for old, new in whole) / count if count else 0.0

    return rates.check(
        replace(
            base,
            actor=replace(
                base.actor,
                step_seconds=step_seconds,
                rollout_seconds=rollout_seconds,
                fetch_seconds=mean("actor_weight_fetch_seconds_sum", "actor_weight_fetch_seconds_count"),
                swap_seconds=mean("actor_weight_swap_seconds_sum", "actor_weight_swap_seconds_count"),
            ),
            verifier=replace(
                base.verifier, check_seconds=mean("verifier_check_seconds_sum", "verifier_verdicts_total")
            ),
            notes=(note,) if note else (),
        )
    )


def busy_seconds(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The time for which an actor had something to decode, without the loading of weights."""
    away = ("actor_idle_seconds_total", "actor_weight_swap_seconds_sum")
    return max(0.0, after[CLOCK] - before[CLOCK] - sum(rise(before, after, name) for name in away))


def rise(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """How much a counter rose; a process that was started again counts from nothing."""
    old, new = before.get(name, 0.0), after.get(name, 0.0)
    return new - old if new >= old else new


def _both(before: Look, after: Look) -> list[Pair]:
    """The processes that were there both times."""
    return [(before[name], after[name]) for name in before.keys() & after.keys()]


def _unpaused(pairs: list[Pair]) -> list[Pair]:
    """Without those that lie too far apart: a pause of the machine."""
    seconds = [new[CLOCK] - old[CLOCK] for old, new in pairs]
    longest = LATE * statistics.median(seconds) if seconds else 0.0
    return [pair for pair, apart in zip(pairs, seconds, strict=True) if apart <= longest]


def look(directory: Path) -> Look:
    """The counters of every actor and verifier now; one that has just left is left out. Raises `ValueError`."""
    found: Look = {}
    for process in targets(directory):
        try:
            page = _ask(f"http://{process.address}/metrics")
        except OSError:
            continue  # it is leaving, or starting: the next look sees
        found[process.name] = {CLOCK: time.monotonic(), **counters(page, COUNTED[process.role])}
    return found


def targets(directory: Path) -> list[Process]:
    """The actors and verifiers of the run. Raises `ValueError` when its broker does not answer."""
    try:
        address = json.loads((directory / "broker.json").read_text())["http"]
        listed = json.loads(_ask(f"{address}/targets"))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory}: its broker does not answer ({error}): does the run go on?") from None
    processes = [Process(each["labels"]["job"], each["labels"]["process"], each["targets"][0]) for each in listed]
    return [process for process in processes if process.role in COUNTED]


def counters(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """The values of `names` in a page of /metrics, summed over labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in names:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def _ask(address: str) -> str:
    with DIRECT.open(address, timeout=ASK_SECONDS) as answer:
        return str(answer.read().decode())


def main(words: list[str]) -> NoReturn:
    """The command."""
    given = {"seconds": 30.0, "every": 5.0}
    try:
        if not words or not Path(words[0]).is_dir():
            raise ValueError(USAGE)
        for word in words[1:]:
            found = re.fullmatch(r"(seconds|every)=(\d+(?:\.\d+)?)", word)
            if not found or not float(found[2]):
                raise ValueError(f"{word!r}: {USAGE}")
            given[found[1]] = float(found[2])
        directory = Path(words[0])
        measured = measure(directory, given["seconds"], given["every"])
        rates.write(measured, directory / rates.FILE)
    except (ValueError, OSError) as error:
        sys.exit(f"measure: {error}")
    print(f"{directory / rates.FILE}: {told(measured)}")
    sys.exit(0)


def told(measured: Rates) -> str:
    """The speeds in one line."""
    actor, full = measured.actor, measured.actor.max_num_seqs
    return (
        f"an actor decodes {actor.tokens_per_second(full):,.0f} tokens/s in full batches of {full}, "
        f"the learner trains {measured.learner.tokens_per_second:,.0f}, a check takes "
        f"{1e3 * measured.verifier.check_seconds:.2f} ms, a rollout has {measured.length_mean:.1f} tokens"
        + "".join(f"; {note}" for note in measured.notes)
    )

"""`python -m learner.broker.inspect RUN [--json]`: what the journal of a run holds, for a live run and for a dead one.

RUN is a run's directory or a journal. Nothing is changed: a live journal is read in one consistent moment beside its
broker, which never waits for a reader; one that was closed in good order is opened as what can never change.
"""

import argparse
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learner.broker.admission import in_time
from learner.broker.changes import Saved
from learner.broker.config import JOURNAL, StreamConfig
from learner.broker.groups import Group, SampleState
from learner.broker.journal import FORMAT, JournalFailed, read
from learner.broker.stream import Stream
from protocol.errors import MalformedMessage
from protocol.messages import Task

STAGES = ("pending", "leased", "verifying", "ready", "handed_out", "trained")
LOCKS = Path("/proc/locks")
SHOWN = 12  # group ids in a line of text


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The leases of one actor."""

    leases: tuple[int, ...]
    groups: tuple[int, ...]
    samples: int  # leased
    missing: int  # of them, those that have not arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a journal holds, in one consistent moment."""

    path: str
    format: int
    run: dict[str, Any]  # what must be the same when the run goes on
    held_by: int | None  # the broker's process; None: no process of this host holds it
    file_bytes: int
    log_bytes: int  # of the write-ahead log
    policy_version: int
    furthest: int  # above `policy_version`: the learner makes the steps between them anew
    retained_from: int  # oldest version whose batch is kept
    groups_granted: int  # leased since the start and not dropped
    admission_limit: int
    next_group: int  # no group from here on was ever leased
    groups_trained: int
    exhausted: str  # why no further task will be leased; empty while one may be
    waiting_for: str
    waits: tuple[str, ...]  # who waits for whom, in words
    leases: dict[str, Held]  # by actor
    groups: dict[str, tuple[int, ...]]  # by stage
    samples: dict[str, int]  # of live groups, by state
    dropped: dict[int, str]  # group → reason
    dropped_by_reason: dict[str, int]
    batches: dict[int, tuple[int, ...]]  # policy version → its groups: the last may be handed out, the others trained
    versions: tuple[int, ...]  # published, and still named by rollouts
    counts: dict[str, int]
    tasks_retired: int


class _NoTasks:
    """A reader leases nothing."""

    epoch_size = 0

    def task_id(self, index: int) -> str | None:
        return None

    def task(self, index: int) -> Task | None:
        return None


def journal_of(run: Path) -> Path:
    """The journal that `run` names. Raises `JournalFailed` when there is none."""
    path = run / JOURNAL if run.is_dir() else run
    if not path.is_file():
        raise JournalFailed(
            f"{path}: is not there; give the directory of a run (run.dir), or its journal (journal.path)"
        )
    return path


def inspect(run: Path) -> Contents:
    """What the journal of `run` holds. Raises `JournalFailed` for what is not there and what cannot be read."""
    path = journal_of(run)
    try:
        with closing(_open(path)) as database:
            identity = _identity(database, path)
            saved = read(database, identity["stream.group_size"], identity["run.seed"])
    except sqlite3.OperationalError as error:
        raise JournalFailed(
            f"{path}: cannot be read: {error}; beside a log its directory must be writable: copy {path.name}* elsewhere"
        ) from None
    except (sqlite3.Error, MalformedMessage, TypeError, ValueError, KeyError, IndexError) as error:
        raise JournalFailed(f"{path}: is damaged: {type(error).__name__}: {error}") from None
    return _contents(path, identity, saved)


def _open(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. Without a log the file is whole and at rest: not even its lock is touched."""
    at_rest = not _log(path).exists()
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' * at_rest}", uri=True)


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _identity(database: sqlite3.Connection, path: Path) -> dict[str, Any]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "meta" not in tables:
        raise JournalFailed(f"{path}: holds no journal{'' if tables else ', nothing was ever written to it'}")
    meta = {name: json.loads(value) for name, value in database.execute("SELECT name, value FROM meta")}
    if (found := meta.get("format")) != FORMAT:
        raise JournalFailed(f"{path}: is of format {found}, this version reads {FORMAT}")
    identity = meta["run"]
    assert isinstance(identity, dict)
    return identity


def _contents(path: Path, identity: dict[str, Any], saved: Saved) -> Contents:
    state, log = saved.state, _log(path)
    options = {name: identity[f"stream.{name}"] for name in ("group_size", "groups_per_step", "max_staleness")}
    stream = Stream(_NoTasks(), StreamConfig(**options), identity["run.seed"])
    stream.restore(saved, now=0.0)
    groups: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for group in saved.groups:
        groups[_stage(group, stream)].append(group.group_id)
    leases = {actor: _held(stream, actor) for actor in sorted(stream.leases.holders)}
    return Contents(
        path=str(path),
        format=FORMAT,
        run=identity,
        held_by=holder(path),
        file_bytes=path.stat().st_size,
        log_bytes=log.stat().st_size if log.exists() else 0,
        policy_version=state.version,
        furthest=state.furthest,
        retained_from=state.retained_from,
        groups_granted=state.granted,
        admission_limit=stream.admission_limit,
        next_group=state.next_task,
        groups_trained=state.consumed_groups,
        exhausted=state.exhausted,
        waiting_for=stream.waiting_for,
        waits=tuple(_waits(stream, groups, leases)),
        leases=leases,
        groups={stage: tuple(ids) for stage, ids in groups.items()},
        samples=_samples(stream),
        dropped=saved.dropped,
        dropped_by_reason=dict(sorted(state.dropped.items())),
        batches=dict(sorted(saved.batches.items())),
        versions=tuple(sorted(saved.fingerprints)),
        counts=state.counts,
        tasks_retired=len(stream.retirement.retired),
    )


def _stage(group: Group, stream: Stream) -> str:
    """Where a group stands: where its least advanced sample does."""
    if group.group_id not in stream.groups:
        return "trained"
    if group.group_id in stream.batches.get(stream.version, ()):
        return "handed_out"
    if group.finished:
        return "ready"
    states = {sample.state for sample in group.samples}
    if SampleState.PENDING in states:
        return "pending"
    return "leased" if SampleState.LEASED in states else "verifying"


def _samples(stream: Stream) -> dict[str, int]:
    counts = Counter(sample.state for group in stream.groups.values() for sample in group.samples)
    return {state.name.lower(): counts[state] for state in SampleState}


def _held(stream: Stream, actor: str) -> Held:
    leases = stream.leases.of(actor)
    return Held(
        leases=tuple(lease.lease_id for lease in leases),
        groups=tuple(sorted({lease.group.group_id for lease in leases})),
        samples=sum(len(lease.leased) for lease in leases),
        missing=sum(len(lease.samples) for lease in leases),
    )


def _waits(stream: Stream, groups: Mapping[str, Sequence[int]], leases: Mapping[str, Held]) -> list[str]:
    """One sentence for everybody who owes something."""
    waits = [f"{held.missing} rollouts of groups {_ids(held.groups)} by {actor}" for actor, held in leases.items()]
    if groups["pending"]:
        waits.append(f"an actor for samples of groups {_ids(groups['pending'])}")
    if verdicts := _samples(stream)["verifying"]:
        waits.append(f"{verdicts} verdicts by verifiers")
    if handed_out := groups["handed_out"]:
        waits.append(f"step {stream.version + 1} by the learner, on groups {_ids(handed_out)}")
    elif older := _held_back(stream, groups["ready"]):
        waits.append(f"groups {_ids(older)}, before which the next batch must not be taken")
    return waits


def _held_back(stream: Stream, ready: Sequence[int]) -> list[int]:
    """The unfinished groups that a batch of the oldest finished ones would leave behind until they are too old."""
    options = stream.config
    if len(ready) < options.groups_per_step:
        return []
    chosen = set(ready[: options.groups_per_step])
    left = [group for group_id, group in stream.groups.items() if group_id not in chosen]
    if in_time(
        (group.lease_version for group in left),
        version=stream.version,
        max_staleness=options.max_staleness,
        groups_per_step=options.groups_per_step,
    ):
        return []
    return [group.group_id for group in left if not group.finished]


def holder(path: Path) -> int | None:
    """The process that holds the journal at `path`; None when no process that can be seen from here does."""
    lock = path.with_suffix(".lock")
    if not lock.exists() or not LOCKS.exists():
        return None
    inode = str(lock.stat().st_ino)
    for line in LOCKS.read_text().splitlines():
        match line.split():
            case [_, "FLOCK", _, _, process, file, *_] if file.rpartition(":")[2] == inode:
                return int(process)
    return None


# ------------------------------------------------------------ shown


def as_text(contents: Contents) -> str:
    """For people, a line a subject."""
    it = contents
    owner = f"held by process {it.held_by}" if it.held_by else "no broker holds it"
    anew = f"; steps {it.policy_version + 1} to {it.furthest} are made anew" if it.furthest > it.policy_version else ""
    lines = [
        ("journal", f"{it.path}, format {it.format}; {owner}"),
        ("size", f"{it.file_bytes:,} bytes and a log of {it.log_bytes:,}"),
        ("run", " ".join(f"{name}={value}" for name, value in it.run.items() if value not in ("", [], {}, 0))),
        ("version", f"{it.policy_version}{anew}; batches are kept from version {it.retained_from} on"),
        (
            "admission",
            f"{it.groups_granted} of {it.admission_limit} groups are leased and not dropped; {it.groups_trained} are "
            f"trained; group {it.next_group} is next{f'; {it.exhausted}' if it.exhausted else ''}",
        ),
        ("waits for", it.waiting_for),
        *(("", f"owed: {wait}") for wait in it.waits),
        *(
            (
                "leases" * (place == 0),
                f"{actor}: {len(held.leases)} leases, {held.missing} of {held.samples} samples missing, "
                f"groups {_ids(held.groups)}",
            )
            for place, (actor, held) in enumerate(it.leases.items())
        ),
        ("groups", ", ".join(f"{len(ids)} {stage}" for stage, ids in it.groups.items() if ids) or "none"),
        ("samples", ", ".join(f"{count} {state}" for state, count in it.samples.items() if count) or "none"),
        ("dropped", ", ".join(f"{count} {reason}" for reason, count in it.dropped_by_reason.items()) or "none"),
        *(
            (
                "batches" * (place == 0),
                f"version {version}, {'handed out' if version == it.policy_version else 'trained, kept'}: {_ids(ids)}",
            )
            for place, (version, ids) in enumerate(it.batches.items())
        ),
        ("counts", ", ".join(f"{count} {name}" for name, count in sorted(it.counts.items()) if count) or "none"),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def _ids(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return " ".join(map(str, ids[:SHOWN])) + more


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the journal holds."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.broker.inspect",
        description="What the journal of a run holds: leases, groups, who waits for what.",
    )
    parser.add_argument("run", type=Path, help="directory of a run, or a journal")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    chosen = parser.parse_args(arguments)
    try:
        contents = inspect(chosen.run)
    except JournalFailed as error:
        sys.exit(f"inspect: {error}")
    print(json.dumps(asdict(contents), indent=2) if chosen.json else as_text(contents))


if __name__ == "__main__":
    main()

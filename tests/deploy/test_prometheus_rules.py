"""Rules and alerts by promtool: each alert fires on its fault, alone, and a healthy run is silent.

A run is a set of series, written as promtool writes them: `0+5x3` is 0, 5, 10, 15, one sample every 15 seconds. A fault
replaces some of the series of the healthy run, most of them from minute 25 on.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import installed

from deploy.prometheus import runbook
from deploy.prometheus.configuration import HERE, configuration

END = 320  # samples: 80 minutes
FAULT = 100  # sample at which most faults begin: minute 25


def labels(job: str, name: str, /, **more: str) -> str:
    """As the broker and prometheus.yml give them."""
    pairs = {"instance": name, "job": job, "process": name, "run": "r", **more}
    return ",".join(f'{name}="{value}"' for name, value in pairs.items())


def of_broker(name: str, **more: str) -> str:
    """A series of the broker."""
    return f"{name}{{{labels('broker', 'broker', **more)}}}"


def of_learner(name: str, **more: str) -> str:
    """A series of the learner."""
    return f"{name}{{{labels('learner', 'learner', **more)}}}"


def of_actor(name: str, index: int = 0, **more: str) -> str:
    """A series of an actor."""
    return f"{name}{{{labels('actor', f'actor-{index}', **more)}}}"


HEALTHY = {  # a step of 30 s
    of_broker("up"): f"1x{END}",
    of_broker("broker_progress_timestamp_seconds"): f"0+15x{END}",
    of_broker("broker_journal_unwritten_seconds"): f"0x{END}",
    of_broker("broker_disk_free_bytes"): f"500000000000-1000000x{END}",
    of_broker("broker_disk_bytes"): f"1000000000000x{END}",
    of_broker("broker_max_staleness_steps"): f"2x{END}",
    of_broker("broker_verify_jobs_queued"): f"5x{END}",
    of_broker("broker_verdicts_total"): f"0+150x{END}",
    of_broker("broker_void_verdicts_total"): f"0+0.15x{END}",
    of_broker("broker_peers_lost_total", role="actor", reason="silent"): f"0x{END}",
    of_broker("broker_peers_lost_total", role="actor", reason="left"): f"0x{FAULT} 1x{END - FAULT}",
    of_broker("broker_fingerprint_mismatches_total"): f"0x{END}",
    of_learner("learner_fingerprint_mismatches_total"): f"0x{END}",
    of_broker("process_start_time_seconds"): f"0x{END}",
    of_learner("process_start_time_seconds"): f"0x{FAULT} 1500x{END - FAULT}",  # one restart is nobody's worry
    of_learner("learner_disk_free_bytes"): f"90000000000x{END}",
    of_learner("learner_disk_bytes"): f"1000000000000x{END}",
    of_learner("learner_step_seconds_sum", phase="train"): f"0+10x{END}",
    of_learner("learner_step_seconds_sum", phase="receive"): f"0+5x{END}",
    of_learner("learner_step_seconds_count", phase="train"): f"0+0.5x{END}",
    of_learner("learner_step_seconds_count", phase="receive"): f"0+0.5x{END}",
    of_learner("learner_policy_version"): f"0+0.5x{END}",
    of_learner("learner_updates_skipped_total", reason="not_finite"): f"0x{END}",
    of_learner("learner_updates_skipped_total", reason="no_signal"): f"0+0.1x{END}",
    of_learner("learner_staleness_steps_mean"): f"1.4x{END}",
    of_learner("learner_ess_ratio"): f"NaN NaN 0.9x{END}",
    of_learner("learner_length_bias_ratio"): f"NaN NaN 0.97x{END}",
    of_learner("learner_entropy_nats"): f"NaN NaN 0.8-0.002x{END}",
    of_actor("actor_policy_version"): f"0+0.5x{END}",
    of_actor("actor_policy_version", 1): f"0x20 10+0.5x{END - 20}",  # its engine starts, the others are at version 10
    of_actor("process_start_time_seconds"): f"0x{END}",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and what the alert then says, `at` a minute."""

    alert: str
    series: dict[str, str]
    at: int
    labels: dict[str, str]
    says: str
    quiet_at: int | None = None  # a minute at which it is too early to fire
    name: str = field(default="")


BROKER = {"instance": "broker", "job": "broker", "process": "broker", "run": "r"}
LEARNER = {"instance": "learner", "job": "learner", "process": "learner", "run": "r"}
ACTOR = {"instance": "actor-0", "job": "actor", "process": "actor-0", "run": "r"}
RUN = {"run": "r"}


def from_then(before: str, after: str) -> str:
    """`before` until the fault, `after` from then on."""
    return f"{before}x{FAULT - 1} {after}x{END - FAULT}"


FAULTS = [
    Fault(
        "NoProgress",
        {
            of_broker("broker_progress_timestamp_seconds"): from_then("0+15", "1485"),
            **{
                of_learner(f"learner_step_seconds_{part}", phase="train"): from_then(f"0+{step}", str(99 * step))
                for part, step in {"sum": 10, "count": 0.5}.items()
            },
        },
        at=40,
        labels=BROKER,
        says="run r: no batch was trained for 15m 15s",
        quiet_at=34,
    ),
    Fault(
        "BrokerUnreachable",
        {of_broker("up"): from_then("1", "0")},
        at=28,
        labels=BROKER,
        says="run r: the broker does not answer",
        quiet_at=26,
    ),
    Fault(
        "JournalNotWritable",
        {of_broker("broker_journal_unwritten_seconds"): from_then("0", "1+15")},
        at=27,
        labels=BROKER,
        says="run r: the journal could not be written for 2m 1s",
    ),
    Fault(
        "DiskFillsUp",
        {of_learner("learner_disk_free_bytes"): from_then("90000000000", "40000000000")},
        at=40,
        labels=LEARNER,
        says="run r: the disk of the learner is nearly full, or will be within four hours",
        quiet_at=29,
        name="little is left",
    ),
    Fault(
        "DiskFillsUp",
        {of_broker("broker_disk_free_bytes"): f"500000000000-800000000x{END}"},
        at=40,
        labels=BROKER,
        says="run r: the disk of the broker is nearly full, or will be within four hours",
        name="at this pace",
    ),
    Fault(
        "WeightsNotArriving",
        {of_actor("actor_policy_version"): from_then("0+0.5", "49")},
        at=35,
        labels=ACTOR,
        says="run r: actor-0 is 21 versions behind the learner",
        quiet_at=30,
    ),
    Fault(
        "WrongWeights",
        {of_broker("broker_fingerprint_mismatches_total"): from_then("0", "2")},
        at=30,
        labels=RUN,
        says="run r: 2 times weights were not those of their version",
        name="the broker says",
    ),
    Fault(
        "WrongWeights",
        {of_learner("learner_fingerprint_mismatches_total"): from_then("0", "2")},
        at=30,
        labels=RUN,
        says="run r: 2 times weights were not those of their version",
        name="the learner says",
    ),
    Fault(
        "GradientNotFinite",
        {of_learner("learner_updates_skipped_total", reason="not_finite"): from_then("0", "2")},
        at=30,
        labels=RUN,
        says="run r: 2 updates were skipped, their gradient was not finite",
    ),
    Fault(
        "VerifierBacklog",
        {of_broker("broker_verify_jobs_queued"): from_then("5", "0+60")},
        at=40,
        labels=RUN,
        says="run r: rollouts wait 6m 0s for a verifier",
        quiet_at=30,
        name="slow",
    ),
    Fault(
        "VerifierBacklog",
        {
            of_broker("broker_verify_jobs_queued"): from_then("5", "3"),
            of_broker("broker_verdicts_total"): from_then("0+150", "14850"),
        },
        at=40,
        labels=RUN,
        says="run r: rollouts wait 50m 0s for a verifier",
        name="gone",
    ),
    Fault(
        "VoidVerdicts",
        {of_broker("broker_void_verdicts_total"): from_then("0", "0+15")},
        at=45,
        labels=RUN,
        says="run r: 10% of the verdicts are void",
        quiet_at=26,
    ),
    Fault(
        "ActorLost",
        {of_broker("broker_peers_lost_total", role="actor", reason="silent"): from_then("0", "2")},
        at=30,
        labels=RUN,
        says="run r: 2 actors were lost within ten minutes",
    ),
    Fault(
        "ProcessRestarts",
        {of_actor("process_start_time_seconds"): f"0x{FAULT} 1515x10 1680x{END}"},
        at=30,
        labels=ACTOR,
        says="run r: actor-0 was started 2 times again within fifteen minutes",
        quiet_at=26,
    ),
    Fault(
        "StalenessNearBound",
        {of_learner("learner_staleness_steps_mean"): from_then("1.4", "1.9")},
        at=45,
        labels=RUN,
        says="run r: tokens are 95% as stale as allowed",
        quiet_at=39,
    ),
    Fault(
        "EffectiveSampleSizeLow",
        {of_learner("learner_ess_ratio"): from_then("0.9", "0.1")},
        at=45,
        labels=LEARNER,
        says="run r: a batch is worth 10% of its rollouts",
        quiet_at=30,
    ),
    Fault(
        "LengthBias",
        {of_learner("learner_length_bias_ratio"): from_then("0.97", "0.8")},
        at=45,
        labels=LEARNER,
        says="run r: the length of what is trained is off by 20% of what is sampled",
        quiet_at=39,
    ),
    Fault(
        "EntropyCollapse",
        {of_learner("learner_entropy_nats"): from_then("0.8", "0.05")},
        at=40,
        labels=LEARNER,
        says="run r: the entropy fell to 0.050 nats a token",
        quiet_at=34,
    ),
]

UNUSUAL_BUT_WELL = {
    "steps of twenty minutes": (
        {
            of_broker("broker_progress_timestamp_seconds"): from_then("0+15", "1485"),
            of_learner("learner_step_seconds_sum", phase="train"): f"0+15x{END}",
            of_learner("learner_step_seconds_sum", phase="receive"): f"0x{END}",
            of_learner("learner_step_seconds_count", phase="train"): f"0+0.0125x{END}",
        },
        (40, 80),
    ),
    "a synchronous run": (
        {
            of_broker("broker_max_staleness_steps"): f"0x{END}",
            of_learner("learner_staleness_steps_mean"): f"0x{END}",
            of_actor("actor_policy_version", 1): f"0+0.5x{END}",
        },
        (40, 80),
    ),
    "nothing was checked yet": (
        {
            of_broker(name): f"0x{END}"
            for name in ("broker_verdicts_total", "broker_void_verdicts_total", "broker_verify_jobs_queued")
        },
        (40, 80),
    ),
}


def alert_names() -> list[str]:
    """All there are."""
    return [each.name for each in runbook.alerts()]


def expect(alert: str, minute: int, *fired: dict[str, Any]) -> dict[str, Any]:
    """One of promtool's own tests."""
    return {"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": list(fired)}


def check(
    tmp_path: Path, series: dict[str, str], tests: list[dict[str, Any]], expressions: list[Any] | None = None
) -> None:
    """Run promtool on these series; its own words are the failure."""
    file = tmp_path / "test.yml"
    one = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
        "promql_expr_test": expressions or [],
    }
    rules = [str(HERE / "recording.yml"), str(HERE / "alerts.yml")]
    symptoms = sorted({each.symptom for each in runbook.alerts()})
    content = {
        "rule_files": rules,
        "evaluation_interval": "15s",
        "group_eval_order": ["offbeat", *symptoms],  # else in any order, anew at every start
        "tests": [one],
    }
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [installed("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_healthy_run_is_silent(tmp_path: Path) -> None:
    check(tmp_path, HEALTHY, [expect(name, minute) for name in alert_names() for minute in (1, 15, 30, 60, 80)])


@pytest.mark.parametrize("name", UNUSUAL_BUT_WELL)
def test_what_is_unusual_but_well_is_silent(tmp_path: Path, name: str) -> None:
    series, minutes = UNUSUAL_BUT_WELL[name]
    check(tmp_path, HEALTHY | series, [expect(alert, minute) for alert in alert_names() for minute in minutes])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.alert} {fault.name}".strip())
def test_a_fault_fires_its_alert_and_no_other(tmp_path: Path, fault: Fault) -> None:
    (alert,) = [each for each in runbook.alerts() if each.name == fault.alert]
    annotations = {"summary": fault.says, "description": alert.description, "runbook": alert.runbook}
    fired = {"exp_labels": fault.labels | {"severity": alert.severity}, "exp_annotations": annotations}
    tests = [expect(fault.alert, fault.at, fired)]
    tests += [expect(fault.alert, fault.quiet_at)] if fault.quiet_at else []
    tests += [expect(name, fault.at) for name in alert_names() if name != fault.alert]
    assert HEALTHY.keys() >= fault.series.keys(), "a fault is a change of the healthy run"
    check(tmp_path, HEALTHY | fault.series, tests)


def test_every_alert_has_a_fault_that_fires_it() -> None:
    assert {fault.alert for fault in FAULTS} == set(alert_names())


def test_recording_rules_say_what_their_names_say(tmp_path: Path) -> None:
    series = HEALTHY | {
        of_actor("actor_generated_tokens_total"): f"0+3000x{END}",
        of_actor("actor_generated_tokens_total", 1): f"0+1500x{END}",
        of_actor("actor_step_seconds_sum"): f"0+12x{END}",
        of_learner("learner_trained_tokens_total"): f"0+1500x{END}",
    }
    values = {
        "run:generated_tokens:rate1m": (RUN, 300.0),
        "run:trained_tokens:rate1m": (RUN, 100.0),
        "run:verdicts:rate1m": (RUN, 10.0),
        "run:step_seconds:mean1h": (RUN, 30.0),
        "run_phase:step_seconds:mean10m{phase='receive'}": (RUN | {"phase": "receive"}, 10.0),
        "run:learner_waiting:ratio1m": (RUN, 1 / 3),
        "process:actor_busy:ratio1m": (ACTOR, 0.8),
        "run:staleness:ratio": (RUN, 0.7),
        "run:verify_backlog:seconds": (RUN, 0.5),
        "run:void_verdicts:ratio10m": (RUN, 0.001),
        "process:disk_free:ratio{job='learner'}": (LEARNER, 0.09),
    }
    expressions = []
    for query, (found, value) in values.items():
        pairs = ",".join(f'{label}="{content}"' for label, content in found.items())
        # promtool compares exactly: the difference from the truth, in millionths, must round to 0
        expressions.append(
            {
                "expr": f"round(({query} - {value!r}) * 1e6) == bool 0",
                "eval_time": "70m",
                "exp_samples": [{"labels": f"{{{pairs}}}", "value": 1}],
            }
        )
    check(tmp_path, series, [], expressions)


def test_the_configuration_and_its_rules_are_well_formed(tmp_path: Path) -> None:
    promtool = installed("promtool")
    subprocess.run([promtool, "check", "config", str(HERE / "prometheus.yml")], check=True, capture_output=True)
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration(["http://127.0.0.1:9400", "http://10.0.0.1:9400"], interval="1s"))
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout
    (scrape,) = yaml.safe_load(file.read_text())["scrape_configs"]
    assert [each["url"] for each in scrape["http_sd_configs"]] == [
        "http://127.0.0.1:9400/targets",
        "http://10.0.0.1:9400/targets",
    ]


def test_every_alert_has_a_severity_a_summary_and_a_line_of_the_runbook() -> None:
    for alert in runbook.alerts():
        assert alert.severity in ("critical", "warning"), alert.name
        assert "{{ $labels.run }}" in alert.summary, alert.name
        assert len(alert.runbook.split()) >= 10, alert.name


def test_the_tables_of_alerts_in_the_readme_are_current() -> None:
    readme = HERE.parent / "README.md"
    assert readme.read_text() == runbook.insert(readme.read_text()), (
        "run `python -m deploy.prometheus.runbook deploy/README.md`"
    )


def test_a_file_without_the_tables_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no line '<!-- alerts: written by"):
        runbook.insert("# no table here")

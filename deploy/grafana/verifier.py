"""Verifier: how fast answers are checked, and what became of the checks."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

CHOSEN = '{run=~"$run",process=~"$process"}'
RECENT = '{run=~"$run",process=~"$process"}[$__rate_interval]'

PACE = Row(
    "Pace",
    (
        Panel(
            title="Verdicts, by verifier",
            says="Sent, a second.",
            unit="per second",
            queries=(Query(f"sum by (process) (rate(verifier_verdicts_total{RECENT}))", "{{process}}"),),
        ),
        Panel(
            title="Queue",
            says="Jobs that no worker has begun, and those that one is at. A long queue wants more workers.",
            unit="count",
            queries=(
                Query(f"verifier_jobs_queued{CHOSEN}", "queued {{process}}"),
                Query(f"verifier_jobs_running{CHOSEN}", "running {{process}}"),
            ),
        ),
        Panel(
            title="Wait for a verifier",
            says="How long all verifiers take for what the broker has queued, at their present pace.",
            unit="seconds",
            queries=(Query('run:verify_backlog:seconds{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="One check",
            says="Of all rewards: half of the checks, and all but one in a hundred, take no longer.",
            unit="seconds",
            logarithmic=True,
            queries=tuple(
                Query(f"histogram_quantile({share}, sum by (le) (rate(verifier_check_seconds_bucket{RECENT})))", legend)
                for share, legend in ((0.5, "median"), (0.99, "99th percentile"))
            ),
        ),
        Panel(
            title="Mean check, by reward",
            says="Seconds of one reward applied to one text.",
            unit="seconds",
            queries=(
                Query(
                    f"sum by (reward) (rate(verifier_check_seconds_sum{RECENT}))"
                    f" / sum by (reward) (rate(verifier_check_seconds_count{RECENT}))",
                    "{{reward}}",
                ),
            ),
        ),
        Panel(
            title="Checks, by reward",
            says="A second. A task may have several rewards.",
            unit="per second",
            queries=(Query(f"sum by (reward) (rate(verifier_checks_total{RECENT}))", "{{reward}}"),),
        ),
    ),
)

OUTCOMES = Row(
    "What became of them",
    (
        Panel(
            title="Checks, by outcome",
            says="A second. `scored` is well; the others say what the answers did to their checks.",
            unit="per second",
            queries=(Query(f"sum by (outcome) (rate(verifier_checks_total{RECENT}))", "{{outcome}}"),),
        ),
        Panel(
            title="Verdicts, by outcome",
            says="A second. A void one is nobody's wrong answer: its rollout is checked again.",
            unit="per second",
            queries=(Query(f"sum by (outcome) (rate(verifier_verdicts_total{RECENT}))", "{{outcome}}"),),
        ),
        Panel(
            title="Void verdicts",
            says="Share of the last ten minutes. The alert VoidVerdicts fires above 2 %.",
            unit="share",
            queries=(Query('run:void_verdicts:ratio10m{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Workers ended and replaced",
            says="Within ten minutes, by reason. `renewed` is routine; `starved` says that there are too few cores.",
            unit="count",
            queries=(Query(f"sum by (reason) (increase(verifier_workers_killed_total{CHOSEN}[10m]))", "{{reason}}"),),
        ),
        Panel(
            title="Memory",
            says="Of each verifier's service; its workers have verifier.memory_bytes each.",
            unit="bytes",
            queries=(
                Query('process_resident_memory_bytes{job="verifier",run=~"$run",process=~"$process"}', "{{process}}"),
            ),
        ),
        Panel(
            title="Messages that could not be taken",
            says="Within ten minutes. Above 0 the roles are of different versions.",
            unit="count",
            queries=(Query(f"sum(increase(verifier_messages_rejected_total{CHOSEN}[10m]))", "rejected"),),
        ),
    ),
)

SANDBOX = Row(
    "Sandbox",
    (
        Panel(
            title="Programs, by how they ended",
            says="A second. `exit` is well; cpu, wall, memory and output are the limits that model-written code met.",
            unit="per second",
            width=12,
            queries=(Query(f"sum by (ended) (rate(verifier_sandbox_runs_total{RECENT}))", "{{ended}}"),),
        ),
        Panel(
            title="Walls",
            says="1 where a wall stands on the hosts of all verifiers, 0 where one of them lacks it.",
            unit="count",
            kind="bars",
            width=12,
            highest=1.0,
            queries=(Query(f"min by (wall) (verifier_sandbox_wall{CHOSEN})", "{{wall}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="verifier",
    title="Verifier",
    says="How fast answers are checked, and what became of the checks.",
    process="verifier",
    rows=(PACE, OUTCOMES, SANDBOX),
)

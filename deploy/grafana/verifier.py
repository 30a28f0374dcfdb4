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
            title="Slow checks, by reward",
            says="All but one in a hundred take no longer. The bound is stream.verify_seconds.",
            unit="seconds",
            logarithmic=True,
            queries=(
                Query(
                    f"histogram_quantile(0.99, sum by (le, reward) (rate(verifier_check_seconds_bucket{RECENT})))",
                    "{{reward}}",
                ),
            ),
        ),
        Panel(
            title="Wait for a worker",
            says="From a job's arrival here to its first check: half of the jobs, and all but one in a hundred, wait no"
            " longer. Short ones go first; none waits past its turn for more than verifier.patience_seconds.",
            unit="seconds",
            logarithmic=True,
            queries=tuple(
                Query(f"histogram_quantile({share}, sum by (le) (rate(verifier_wait_seconds_bucket{RECENT})))", legend)
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
            title="Checks tried again",
            says="Within ten minutes, by what the host failed in. `sandbox` and `lost` want a look at the log,"
            " `starved` more cores, `model` a smaller batch of the reward model.",
            unit="count",
            queries=(Query(f"sum by (reason) (increase(verifier_checks_retried_total{CHOSEN}[10m]))", "{{reason}}"),),
        ),
        Panel(
            title="Checks that were not judged, by reward",
            says="Within ten minutes: timeout and memory count as 0, void is not trained, failed is tried again.",
            unit="count",
            queries=(
                Query(
                    "sum by (reward, outcome) (increase(verifier_checks_total"
                    + CHOSEN.replace("}", ',outcome!="scored"}')
                    + "[10m]))",
                    "{{reward}}: {{outcome}}",
                ),
            ),
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

MODEL = Row(
    "Reward model",
    (
        Panel(
            title="Tokens read",
            says="A second, by the reward model of each verifier that serves one; padding is left out.",
            unit="tokens/s",
            width=12,
            queries=(Query(f"sum by (process) (rate(verifier_model_tokens_total{RECENT}))", "{{process}}"),),
        ),
        Panel(
            title="Jobs in a batch",
            says="On average. At 1 it waits for work; at reward_model.batch_jobs work waits for it.",
            unit="count",
            width=12,
            queries=(
                Query(
                    f"sum by (process) (rate(verifier_model_batch_jobs_sum{RECENT}))"
                    f" / sum by (process) (rate(verifier_model_batch_jobs_count{RECENT}))",
                    "{{process}}",
                ),
            ),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="verifier",
    title="Verifier",
    says="How fast answers are checked, and what became of the checks.",
    process="verifier",
    rows=(PACE, OUTCOMES, MODEL, SANDBOX),
)

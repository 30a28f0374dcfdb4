"""Overview: is it learning, how fast, what waits for what."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

LEARNING = Row(
    "Is it learning?",
    (
        Panel(
            title="Reward",
            says="Mean reward of the last batch.",
            unit="number",
            kind="number",
            width=4,
            height=5,
            lowest=None,
            queries=(Query('learner_reward_mean{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Right answers",
            says="Share of the last batch that is right.",
            unit="share",
            kind="number",
            width=4,
            height=5,
            queries=(Query('learner_accuracy_ratio{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Policy version",
            says="Optimizer steps behind the learner's weights.",
            unit="steps",
            kind="number",
            width=4,
            height=5,
            queries=(Query('learner_policy_version{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Since the last batch",
            says="Since it was trained. The alert NoProgress fires at ten minutes and ten times the usual step.",
            unit="seconds",
            kind="number",
            width=4,
            height=5,
            queries=(Query('time() - broker_progress_timestamp_seconds{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Alerts that fire",
            says="0 is well. Each has a line in the runbook, in deploy/README.md.",
            unit="count",
            kind="number",
            width=4,
            height=5,
            queries=(Query('sum(ALERTS{alertstate="firing",run=~"$run"}) or vector(0)', "alerts"),),
        ),
        Panel(
            title="Live processes",
            says="Those that the broker knows, by role.",
            unit="count",
            kind="number",
            width=4,
            height=5,
            queries=(Query('sum by (role) (broker_peers{run=~"$run"})', "{{role}}"),),
        ),
        Panel(
            title="Reward over time",
            says="Mean and standard deviation of the rewards of each batch.",
            unit="number",
            lowest=None,
            queries=(
                Query('learner_reward_mean{run=~"$run"}', "mean {{run}}"),
                Query('learner_reward_std{run=~"$run"}', "standard deviation {{run}}"),
            ),
        ),
        Panel(
            title="Response length",
            says="Mean length of the completions of each batch.",
            unit="tokens",
            queries=(Query('learner_completion_tokens_mean{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Entropy",
            says="Mean entropy of the policy. The alert EntropyCollapse fires below a tenth of what it was.",
            unit="nats",
            queries=(Query('learner_entropy_nats{run=~"$run"}', "{{run}}"),),
        ),
    ),
)

FAST = Row(
    "How fast?",
    (
        Panel(
            title="Tokens",
            says="Sampled by all actors, and trained; what is not trained was dropped, filtered, or is on its way.",
            unit="tokens/s",
            queries=(
                Query('run:generated_tokens:rate1m{run=~"$run"}', "generated {{run}}"),
                Query('run:trained_tokens:rate1m{run=~"$run"}', "trained {{run}}"),
            ),
        ),
        Panel(
            title="Verdicts",
            says="Checks that were answered, a second.",
            unit="per second",
            queries=(Query('run:verdicts:rate1m{run=~"$run"}', "{{run}}"),),
        ),
        Panel(
            title="Where a step's time goes",
            says="Seconds of a step by phase. `receive` is waiting for a batch: actors or verifiers are slower.",
            unit="seconds",
            kind="stack",
            queries=(Query('run_phase:step_seconds:mean10m{run=~"$run"}', "{{phase}}"),),
        ),
    ),
)

WAITING = Row(
    "What waits for what?",
    (
        Panel(
            title="Busy",
            says=(
                "Share of their time in which learner and engines work. A learner that waits wants more actors or "
                "verifiers; engines that wait want a faster learner, or more staleness allowed."
            ),
            unit="share",
            highest=1.0,
            queries=(
                Query('1 - run:learner_waiting:ratio1m{run=~"$run"}', "learner {{run}}"),
                Query('avg by (run) (process:actor_busy:ratio1m{run=~"$run"})', "actors {{run}}"),
            ),
        ),
        Panel(
            title="Processes that wait",
            says="Those that say that they wait for another, by role; the broker's /status says for what.",
            unit="count",
            queries=(Query('sum by (role) (broker_peers_waiting{run=~"$run"})', "{{role}}"),),
        ),
        Panel(
            title="Groups between the roles",
            says="Leased and being sampled, waiting for a verdict, and ready for the learner.",
            unit="count",
            queries=(
                Query('sum(broker_leases_running{run=~"$run"})', "leases that actors hold"),
                Query('sum(broker_groups_ready{run=~"$run"})', "ready for the learner"),
                Query('sum(broker_groups_buffered{run=~"$run"})', "all live groups"),
            ),
        ),
        Panel(
            title="Staleness",
            says="Mean and greatest staleness of the tokens of a batch, and its bound.",
            unit="steps",
            queries=(
                Query('learner_staleness_steps_mean{run=~"$run"}', "mean {{run}}"),
                Query('learner_staleness_steps_max{run=~"$run"}', "greatest {{run}}"),
                Query('broker_max_staleness_steps{run=~"$run"}', "bound {{run}}"),
            ),
        ),
        Panel(
            title="Admission",
            says="Groups that may be leased before the next batch is trained; at 0 the actors wait for the learner.",
            unit="count",
            queries=(
                Query('broker_admission_limit_groups{run=~"$run"} - broker_groups_admitted{run=~"$run"}', "{{run}}"),
            ),
        ),
        Panel(
            title="Wait for a verifier",
            says="How long the verifiers take for what is queued, at their present pace.",
            unit="seconds",
            queries=(Query('run:verify_backlog:seconds{run=~"$run"}', "{{run}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="overview",
    title="Overview",
    says="Is it learning, how fast, and what is waiting for what?",
    rows=(LEARNING, FAST, WAITING),
)

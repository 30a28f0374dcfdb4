"""R1: what reasoning grows into: reward, length of responses, reflective words, majority vote."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

CHOSEN = '{run=~"$run"}'


def gauge(name: str, legend: str) -> Query:
    """The learner's own value, as it stands."""
    return Query(f"{name}{CHOSEN}", legend)


REWARD = Row(
    "Reward",
    (
        Panel(
            title="Reward",
            says="Mean of each batch, and of each part of the reward.",
            unit="number",
            width=12,
            height=9,
            lowest=None,
            queries=(gauge("learner_reward_mean", "reward"), gauge("learner_reward_part_mean", "{{part}}")),
        ),
        Panel(
            title="Right answers, one by one and by vote",
            says=(
                "Share of completions that are right, and of groups in which the answer of most of them is. The vote "
                "stays above while the policy knows more than it says at once."
            ),
            unit="share",
            width=12,
            height=9,
            highest=1.0,
            queries=(
                gauge("learner_accuracy_ratio", "a completion"),
                gauge("learner_majority_accuracy_ratio", "the vote of a group"),
            ),
        ),
    ),
)

RESPONSES = Row(
    "Responses",
    (
        Panel(
            title="Response length",
            says="Mean over a batch: of all, of right and of wrong completions.",
            unit="tokens",
            width=12,
            height=9,
            queries=(
                gauge("learner_completion_tokens_mean", "all"),
                gauge("learner_right_completion_tokens_mean", "right"),
                gauge("learner_wrong_completion_tokens_mean", "wrong"),
            ),
        ),
        Panel(
            title="Longest response",
            says="Of each batch, and the share that was cut at sampling.max_tokens is on the dashboard of the learner.",
            unit="tokens",
            width=12,
            height=9,
            queries=(gauge("learner_completion_tokens_max", "{{run}}"),),
        ),
        Panel(
            title="Reflective words",
            says="How often a completion says wait, however, check and the like, on average.",
            unit="number",
            width=12,
            height=9,
            queries=(gauge("learner_reflective_words_mean", "{{word}}"),),
        ),
        Panel(
            title="All reflective words",
            says="A completion; its rise together with length and reward is what the R1 paper calls the aha moment.",
            unit="number",
            width=12,
            height=9,
            queries=(Query(f"sum by (run) (learner_reflective_words_mean{CHOSEN})", "{{run}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="r1",
    title="R1",
    says="Reward, response length, reflective words and majority vote.",
    rows=(REWARD, RESPONSES),
)

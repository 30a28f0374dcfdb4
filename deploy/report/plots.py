"""The plots of a run: one function a picture, from records to a matplotlib figure."""

from collections import Counter
from collections.abc import Callable, Mapping

import matplotlib as mpl

mpl.use("Agg")  # no display is needed; before anything opens one

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deploy.report.records import Records

INK, GRID = "#1f2933", "#e4e7eb"
COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#868e96")
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.4),
    "font.size": 9.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _figure(title: str, ylabel: str, xlabel: str = "step") -> tuple[Figure, Axes]:
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if xlabel == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _curves(axes: Axes, records: Records, curves: Mapping[str, tuple[str, ...]], marker: str = "") -> None:
    steps = records.series("step")
    for label, path in curves.items():
        values = records.series(*path)
        if any(value == value for value in values):  # not all NaN
            axes.plot(steps, values, label=label, linewidth=1.8, marker=marker, markersize=3)
    if axes.lines:
        axes.legend(loc="best", ncols=2 if len(axes.lines) > 3 else 1)


def reward(records: Records) -> Figure:
    """Mean reward of each step's batch, and of each part."""
    figure, axes = _figure("Reward", "mean of the batch")
    names = sorted({name for row in records.rows for name in row.get("parts") or {}})
    _curves(axes, records, {"reward": ("reward_mean",)} | {name: ("parts", name) for name in names})
    axes.lines[0].set_linewidth(2.8)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return figure


def length(records: Records) -> Figure:
    """Completion lengths, of right and wrong ones apart."""
    figure, axes = _figure("Length of completions", "tokens")
    curves = {"all": ("length_mean",), "right": ("length_correct_mean",), "wrong": ("length_wrong_mean",)}
    _curves(axes, records, curves | {"longest": ("length_max",)})
    axes.set_ylim(bottom=0)
    return figure


def staleness(records: Records) -> Figure:
    """Trained tokens by how many steps old the policy was that sampled them."""
    figure, axes = _figure("Staleness of trained tokens", "tokens", "learner steps behind")
    counts: Counter[int] = Counter()
    for row in records.rows:
        counts.update({int(lag): int(tokens) for lag, tokens in row["staleness_tokens"].items()})
    total = max(sum(counts.values()), 1)
    bars = axes.bar(list(counts), list(counts.values()), width=0.7, color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * count / total:.1f} %" for count in counts.values()], padding=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    return figure


def ratio(records: Records) -> Figure:
    """Importance ratios of the current to the behaviour policy."""
    figure, axes = _figure("Ratio of current to behaviour policy", "π / μ of a token")
    steps = records.series("step")
    low, high = records.series("ratio", "min"), records.series("ratio", "max")
    axes.fill_between(steps, low, high, alpha=0.15, label="least to greatest")
    _curves(axes, records, {"median": ("ratio", "p50"), "99th percentile": ("ratio", "p99")})
    if min(value for value in [*low, 1.0] if value == value) > 0:
        axes.set_yscale("log")
    return figure


def effective_samples(records: Records) -> Figure:
    """Effective sample size of the batch, as a share of its size."""
    figure, axes = _figure("Effective sample size", "share of the batch")
    _curves(axes, records, {"raw weights": ("ess",), "truncated weights": ("ess_truncated",)})
    axes.set_ylim(0, 1.05)
    return figure


def throughput(records: Records) -> Figure:
    """What each role gets done in a second."""
    figure, axes = _figure("Throughput", "tokens a second")
    curves = {
        "actors: generated": ("generated_tokens_per_second",),
        "learner: trained": ("trained_tokens_per_second",),
    }
    _curves(axes, records, curves)
    axes.set_ylim(bottom=0)
    return figure


def verdicts(records: Records) -> Figure:
    """What the verifiers get done in a second."""
    figure, axes = _figure("Verdicts", "a second")
    _curves(axes, records, {"verifiers: verdicts": ("verdicts_per_second",)})
    axes.set_ylim(bottom=0)
    return figure


def entropy(records: Records) -> Figure:
    """Entropy of the policy at the sampled tokens."""
    figure, axes = _figure("Entropy", "nats a token")
    _curves(axes, records, {"entropy": ("entropy",)})
    axes.set_ylim(bottom=0)
    return figure


def divergence(records: Records) -> Figure:
    """Estimates of the KL divergence between behaviour and current policy, and of the one to the reference."""
    figure, axes = _figure("KL of behaviour and current policy", "nats a token")
    curves = {
        "k1": ("kl_k1",),
        "k3": ("kl_k3",),
        "k3, same weights: engine mismatch": ("kl_k3_lag0",),
        "k3, older weights: drift": ("kl_k3_stale",),
        "χ²": ("chi2",),
        "reference": ("reference_kl",),
    }
    _curves(axes, records, curves)
    return figure


def divergence_by_staleness(records: Records) -> Figure:
    """How far the policies are apart by how many steps lie between them."""
    figure, axes = _figure("KL by staleness", "nats a token (k3)")
    buckets = {name for row in records.rows for name in row.get("by_staleness") or {}}
    order = sorted(buckets, key=lambda name: int(name.rstrip("+").split("-")[0]))
    curves = {f"{name} steps": ("by_staleness", name, "kl_k3") for name in order}
    _curves(axes, records, curves)
    if any(value > 0 for path in curves.values() for value in records.series(*path)):
        axes.set_yscale("log")
    return figure


def gradient(records: Records) -> Figure:
    """Gradient norm before it is scaled down."""
    figure, axes = _figure("Gradient norm", "L2 norm")
    _curves(axes, records, {"gradient norm": ("grad_norm",)})
    axes.set_ylim(bottom=0)
    return figure


def clipping(records: Records) -> Figure:
    """Share of tokens whose gradient the loss cut, and of those that a correction rejected, by the advantage's sign."""
    figure, axes = _figure("Clipped and rejected tokens", "share of the tokens of that sign")
    curves = {
        "clipped, A > 0": ("clip_fraction_positive",),
        "clipped, A < 0": ("clip_fraction_negative",),
        "rejected, A > 0": ("mask_fraction_positive",),
        "rejected, A < 0": ("mask_fraction_negative",),
    }
    _curves(axes, records, curves)
    axes.set_ylim(bottom=0)
    return figure


def left_out(records: Records) -> Figure:
    """Groups that teach nothing, completions that were cut, and whether long ones are consumed like short ones."""
    figure, axes = _figure("Signal of the batch", "share, or ratio")
    curves = {
        "groups of equal rewards": ("zero_variance_fraction",),
        "truncated completions": ("truncated_fraction",),
        "length: consumed / generated": ("length_bias",),
    }
    _curves(axes, records, curves)
    axes.set_ylim(bottom=0)
    return figure


def agreement(records: Records) -> Figure:
    """Right answers one by one, and by the vote of each group."""
    figure, axes = _figure("Right answers", "share of the batch")
    _curves(axes, records, {"a completion": ("accuracy",), "the vote of a group": ("majority_accuracy",)})
    axes.set_ylim(0, 1.05)
    return figure


def reflection(records: Records) -> Figure:
    """Words by which completions turn back on themselves."""
    figure, axes = _figure("Reflective words", "a completion")
    words = sorted({word for row in records.rows for word, mean in (row.get("reflective_words") or {}).items() if mean})
    _curves(axes, records, {word: ("reflective_words", word) for word in words})
    axes.set_ylim(bottom=0)
    return figure


def utilisation(records: Records) -> Figure:
    """How much of the learner's devices the model's FLOP take while it trains."""
    figure, axes = _figure("Model FLOP utilisation of the training phase", "share of the peak")
    _curves(axes, records, {"MFU": ("mfu",)})
    axes.set_ylim(bottom=0)
    return figure


def seconds(records: Records) -> Figure:
    """Where the learner's time goes."""
    figure, axes = _figure("The learner's step", "seconds")
    phases = ("receive", "credit", "pack", "train", "publish")
    _curves(axes, records, {name: ("seconds", name) for name in phases})
    axes.set_ylim(bottom=0)
    return figure


PLOTS: Mapping[str, Callable[[Records], Figure]] = {
    "reward": reward,
    "length": length,
    "staleness": staleness,
    "ratio": ratio,
    "effective_samples": effective_samples,
    "throughput": throughput,
    "verdicts": verdicts,
    "entropy": entropy,
    "divergence": divergence,
    "divergence_by_staleness": divergence_by_staleness,
    "gradient": gradient,
    "clipping": clipping,
    "left_out": left_out,
    "agreement": agreement,
    "reflection": reflection,
    "utilisation": utilisation,
    "seconds": seconds,
}


def draw(name: str, records: Records) -> Figure:
    """The plot called `name`, in the report's style."""
    with style.context(STYLE):
        return PLOTS[name](records)

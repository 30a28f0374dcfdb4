"""The configuration of a Prometheus that watches given runs: `prometheus.yml`, with their addresses in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def broker_of(run: str) -> str:
    """The address of a run's HTTP side: `run` itself if it is one, else from broker.json in the run's directory.

    Raises `ValueError` when no broker is running there.
    """
    if run.startswith(("http://", "https://")):
        return run.rstrip("/")
    file = Path(run) / "broker.json"
    try:
        return str(json.loads(file.read_text())["http"])
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"{file} tells of no broker: start the run first, or give its address, as http://host:9400 for a broker "
            "with metrics_port=9400"
        ) from None


def configuration(brokers: Sequence[str], *, interval: str | None = None) -> str:
    """prometheus.yml for brokers at these addresses; `interval` (such as `1s`): of scrapes, rules and discovery."""
    content: Any = yaml.safe_load((HERE / "prometheus.yml").read_text())
    content["rule_files"] = [str(HERE / name) for name in content["rule_files"]]
    (scrape,) = content["scrape_configs"]
    (discovery,) = scrape["http_sd_configs"]
    if interval:
        content["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), interval)
        discovery["refresh_interval"] = interval
    scrape["http_sd_configs"] = [discovery | {"url": f"{broker}/targets"} for broker in brokers]
    return yaml.safe_dump(content, sort_keys=False)

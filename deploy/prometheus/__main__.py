"""`python -m deploy.prometheus runs/quickstart`: a Prometheus that watches one run or several, until Ctrl-C."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.prometheus.configuration import broker_of, configuration
from deploy.prometheus.programs import ProgramMissing, program


def command(arguments: Sequence[str] | None = None) -> list[str]:
    """The command line of the Prometheus that is wanted, its configuration written. Raises `ValueError`."""
    parser = argparse.ArgumentParser(prog="python -m deploy.prometheus", description=__doc__)
    parser.add_argument("runs", nargs="+", help="directory of a run, or http://host:port of its broker")
    parser.add_argument("--listen", default="127.0.0.1:9090", help="address of Prometheus itself")
    parser.add_argument("--interval", help="of scrapes and rules, such as 1s for a run of minutes; else as configured")
    parser.add_argument("--data", type=Path, default=Path("runs/prometheus"), help="configuration and series go here")
    chosen = parser.parse_args(arguments)
    text = configuration([broker_of(run) for run in chosen.runs], interval=chosen.interval)
    chosen.data.mkdir(parents=True, exist_ok=True)
    file = chosen.data / "prometheus.yml"
    file.write_text(text)
    return [
        program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={chosen.data / 'series'}",
        f"--web.listen-address={chosen.listen}",
        "--log.level=warn",
    ]


def main() -> None:
    """Become that Prometheus."""
    try:
        line = command()
    except (ValueError, OSError, ProgramMissing) as error:
        sys.exit(f"prometheus: {error}")
    print(f"watching; see http://{line[3].partition('=')[2]}/alerts", flush=True)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()

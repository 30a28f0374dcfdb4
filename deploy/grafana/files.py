"""The committed JSON of every dashboard, and that it is what the code says."""

import json
from pathlib import Path

from deploy.grafana import broker, learner, overview, r1, rollouts, verifier
from deploy.grafana.model import Dashboard, as_json

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS: tuple[Dashboard, ...] = (
    overview.DASHBOARD,
    rollouts.DASHBOARD,
    learner.DASHBOARD,
    verifier.DASHBOARD,
    broker.DASHBOARD,
    r1.DASHBOARD,
)


def texts() -> dict[str, str]:
    """The files by their names."""
    return {
        f"{each.name}.json": json.dumps(as_json(each, DASHBOARDS), indent=2, ensure_ascii=False) + "\n"
        for each in DASHBOARDS
    }


def write(folder: Path = FOLDER) -> None:
    """Write every file anew, and remove those of dashboards that are gone."""
    folder.mkdir(exist_ok=True)
    wanted = texts()
    for stale in {path.name for path in folder.glob("*.json")} - wanted.keys():
        (folder / stale).unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)

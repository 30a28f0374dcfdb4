"""`python -m deploy.local experiment=quickstart actors=2 loss.name=cispo …`: a whole run on this machine."""

import json
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from deploy.local import layout
from deploy.local.config import LocalRoot, launcher, run_directory
from deploy.local.launch import Launch
from deploy.local.live import view
from deploy.local.plain import duration, number
from deploy.local.supervision import RunFailed
from learner.broker.config import journal_path

ConfigStore.instance().store(name="local_schema", node=LocalRoot)


@hydra.main(version_base="1.3", config_path="../conf", config_name="local")
def main(tree: DictConfig) -> None:
    """Compose, refuse what could not work, run to the end."""
    try:
        config, directory = launcher(tree), run_directory(tree)
        journal = journal_path(tree.journal.path, str(directory))
        layout.claim(directory, journal, overwrite=config.overwrite, resume=config.resume)
        if config.resume and not layout.has_checkpoint(directory):
            tree.checkpoint.required = False
    except (ValueError, OSError) as error:
        sys.exit(f"local: {error}")
    watching = view(config.view, directory)
    try:
        Launch(tree, config, watching.show).run()
    except (RunFailed, ValueError, OSError) as failure:
        watching.close()
        print(f"local: {failure}", file=sys.stderr)
        sys.exit(failure.code if isinstance(failure, RunFailed) else 1)
    watching.close()
    print(result(directory))
    if config.report:
        from deploy.report.page import write  # matplotlib takes its time, which the start would pay

        print(f"report: {write(directory)}")


def result(directory: Path) -> str:
    """What came of the run, in one line."""
    summary = json.loads((directory / "summary.json").read_text())
    rewards = f"reward {number(summary['reward_start'], 3)} → {number(summary['reward_end'], 3)}"
    restarts = "".join(f", {name} restarted {number}×" for name, number in summary["restarts"].items())
    took = f"{summary['steps']} steps and {duration(summary['seconds'])}"
    return f"{rewards} in {took}: {summary['stopped_because']}{restarts}"


if __name__ == "__main__":
    main()

"""`python -m deploy.local experiment=quickstart actors=2 loss.name=cispo …`: a whole run on this machine.

`python -m deploy.local --attach RUN` watches one that goes on; `python -m deploy.local scale RUN actors=4` starts or
ends processes of it.
"""

import json
import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from deploy.local import attach, layout, scale
from deploy.local.config import LocalRoot, launcher, run_directory
from deploy.local.launch import Launch
from deploy.local.live import view
from deploy.local.plain import result
from deploy.local.supervision import RunFailed
from learner.broker.config import journal_path

ConfigStore.instance().store(name="local_schema", node=LocalRoot)
COMMANDS = {"--attach": attach.main, "scale": scale.main}  # all else is a new run


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
    print(result(json.loads((directory / "summary.json").read_text())))
    if config.report:
        from deploy.report.page import write  # matplotlib takes its time, which the start would pay

        print(f"report: {write(directory)}")


if __name__ == "__main__":
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in COMMANDS:
        COMMANDS[first](sys.argv[2:])
    main()

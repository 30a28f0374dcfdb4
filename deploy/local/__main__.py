"""`python -m deploy.local experiment=quickstart actors=2 loss.name=cispo …`: a whole run on this machine."""

import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from deploy.local import layout
from deploy.local.config import LocalRoot, launcher, run_directory
from deploy.local.launch import Launch, RunFailed

ConfigStore.instance().store(name="local_schema", node=LocalRoot)


@hydra.main(version_base="1.3", config_path="../conf", config_name="local")
def main(tree: DictConfig) -> None:
    """Compose, refuse what could not work, run to the end."""
    try:
        config = launcher(tree)
        layout.claim(run_directory(tree), overwrite=config.overwrite)
    except (ValueError, OSError) as error:
        sys.exit(f"local: {error}")
    try:
        Launch(tree, config).run()
    except RunFailed as failure:
        print(f"local: {failure}", file=sys.stderr)
        sys.exit(failure.code)


if __name__ == "__main__":
    main()

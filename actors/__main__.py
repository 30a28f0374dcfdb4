"""`python -m actors broker=tcp://host:5555`: join a run as an actor."""

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from actors.config import ActorRoot

ConfigStore.instance().store(name="actor_schema", node=ActorRoot)


@hydra.main(version_base="1.3", config_path="../deploy/conf", config_name="actor")
def main(config: DictConfig) -> None:
    """Read the configuration, refuse what cannot be, run until the broker says goodbye."""
    print(OmegaConf.to_object(config))


if __name__ == "__main__":
    main()

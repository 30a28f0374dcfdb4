"""`python -m deploy.plan rates=runs/mine`: how many actors and verifiers, and what they give. See `deploy.plan`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from deploy.plan import capacity, measure, page, sizing
from deploy.plan.config import PlanRoot, faults, planned
from deploy.plan.simulation import Outcome, Simulation

ConfigStore.instance().store(name="plan_schema", node=PlanRoot)


@hydra.main(version_base="1.3", config_path="../conf", config_name="plan")
def main(tree: DictConfig) -> None:
    """Find the numbers, simulate them and their neighbours, print."""
    try:
        config = OmegaConf.to_object(tree)
        assert isinstance(config, PlanRoot)
        rates = planned(config)
        verifiers = config.verifiers or capacity.verifiers_needed(rates)

        def simulate(actors: int) -> Outcome:
            run = Simulation(rates, actors=actors, verifiers=verifiers, faults=faults(config.faults), seed=config.seed)
            return run.run(config.steps)

        found = simulate(config.actors) if config.actors else sizing.fewest_actors(rates, config.busy, simulate)
        neighbours = [simulate(actors) for actors in page.neighbours(found.actors)] if not config.actors else []
    except (ValueError, OSError) as error:
        sys.exit(f"plan: {error}")
    for line in page.lines(rates, found, neighbours, config):
        print(line)
    if config.out:
        content = {"rates": asdict(rates), "found": asdict(found), "neighbours": [asdict(each) for each in neighbours]}
        Path(config.out).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure.main(sys.argv[2:])
    main()

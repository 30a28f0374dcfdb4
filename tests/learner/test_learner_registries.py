"""What can be named in the configuration is what is there, no more and no less."""

import pytest

from learner.advantage import ADVANTAGES
from learner.aggregation import AGGREGATIONS
from learner.config import LearnerRoot, LossConfig, check
from learner.losses import CORRECTIONS, LOSSES

REGISTRIES = {
    "name": set(LOSSES),
    "correction": {*CORRECTIONS, "none"},
    "advantage": set(ADVANTAGES),
    "aggregation": set(AGGREGATIONS),
}


@pytest.mark.parametrize("field", sorted(REGISTRIES))
def test_the_names_that_an_option_takes_are_those_of_its_registry(field: str) -> None:
    config = LearnerRoot(model="m")
    setattr(config.loss, field, "nobody")
    with pytest.raises(ValueError, match=f"loss.{field}=nobody: must be one of ") as refused:
        check(config)
    assert set(str(refused.value).split("must be one of ")[1].split(", ")) == REGISTRIES[field]


@pytest.mark.parametrize("field", sorted(REGISTRIES))
def test_the_help_of_an_option_tells_every_name_of_its_registry(field: str) -> None:
    help_text = LossConfig.__dataclass_fields__[field].metadata["doc"]
    assert all(f"`{name}`" in help_text for name in REGISTRIES[field])

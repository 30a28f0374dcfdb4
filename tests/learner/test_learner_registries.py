"""What can be named in the configuration is what is there, no more and no less."""

import pytest

from learner.loss import config as names
from learner.loss.advantages import ADVANTAGES
from learner.loss.aggregation import AGGREGATIONS
from learner.loss.compose import CORRECTIONS, LOSSES, REFERENCE_KL
from learner.loss.config import LossConfig, check_loss

REGISTRIES = {
    "name": set(LOSSES) - {"likelihood"},  # supervised training's own
    "corrections": set(CORRECTIONS),
    "advantage": set(ADVANTAGES),
    "aggregation": set(AGGREGATIONS),
    "filters": {"zero_variance", "truncated"},
    "proximal": {"recompute", "loglinear", "behaviour"},
    "kl_estimator": {*REFERENCE_KL, "k1_reward"},
}


@pytest.mark.parametrize("field", sorted(REGISTRIES))
def test_the_names_that_an_option_takes_are_those_of_its_registry(field: str) -> None:
    config = LossConfig()
    setattr(config, field, ["nobody"] if field in ("corrections", "filters") else "nobody")
    with pytest.raises(ValueError, match=f"loss.{field}=nobody: must be one of ") as refused:
        check_loss(config)
    assert set(str(refused.value).split("must be one of ")[1].split(", ")) == REGISTRIES[field]


@pytest.mark.parametrize("field", sorted(REGISTRIES))
def test_the_help_of_an_option_tells_every_name_of_its_registry(field: str) -> None:
    help_text = LossConfig.__dataclass_fields__[field].metadata["doc"]
    assert all(f"`{name}`" in help_text for name in REGISTRIES[field])


def test_each_loss_and_each_correction_is_of_one_kind() -> None:
    assert sorted(names.ANCHORED + names.WEIGHTED) == sorted(REGISTRIES["name"])
    assert sorted(names.WEIGHTS + names.REJECTIONS) == sorted(CORRECTIONS)
    assert set(names.WHOLE_SEQUENCE) <= set(names.ANCHORED)

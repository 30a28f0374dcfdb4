"""What containers are told to run, and whether a role would accept it: for the tests of compose and of Kubernetes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from deploy.local.config import CHECKS, ROOTS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "kubernetes" / "config"
MODULES = {
    "learner.broker": "broker",
    "learner": "learner",
    "actors": "actor",
    "verifier": "verifier",
    "learner.sft": "sft",
}


def role_of(words: Sequence[str]) -> str | None:
    """The role that `python -m words…` is; None if it is none."""
    for word in reversed(words):
        if word in MODULES:
            return MODULES[word]
    return None


def accepted(words: Sequence[str]) -> Any:
    """The configuration that `python -m words…` composes, which its role's own check has let pass.

    Raises what the role would end with.
    """
    role = role_of(words)
    assert role is not None, words
    layers = [OmegaConf.structured(ROOTS[role])]
    text = " ".join(words)
    if found := re.search(r"--config-name[= ](\S+)", text):
        assert re.search(r"--config-dir[= ]/etc/offbeat\b", text), words
        content = OmegaConf.to_container(OmegaConf.load(CONFIG / f"{found[1]}.yaml"))
        assert isinstance(content, dict)
        assert content.pop("defaults") == [f"{role}_schema", "hydra_quiet", "_self_"]
        layers.append(OmegaConf.create(content))
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=\S+", word)]
    config = OmegaConf.to_object(OmegaConf.merge(*layers, OmegaConf.from_dotlist(overrides)))
    CHECKS[role](config)
    return config

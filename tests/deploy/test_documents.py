"""The commands of the pages on deployment: composed and passed by the roles' own checks, or marked as not run here."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from fake_slurm import tree as slurm_tree
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from manifests import MODULES, ROOT, accepted
from omegaconf import DictConfig, OmegaConf

from deploy.local.config import LocalRoot, check_roles
from deploy.plan.config import PlanRoot, check_options
from deploy.slurm.__main__ import COMMANDS as SLURM_COMMANDS
from deploy.slurm.config import roles_tree

PAGES = ("README.md", "slurm/README.md", "containers/README.md", "kubernetes/README.md")
MARK = "not run here"
FOREIGN = ("docker", "kubectl", "sbatch", "wandb", "pip", "tensorboard")  # programs of others


def commands(page: str) -> list[str]:
    """The command lines of a page, whole: continued lines joined, comments kept."""
    text = (ROOT / "deploy" / page).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    return [line for line in lines if re.match(rf"(\w+=\S+ )*(python|make|for|{'|'.join(FOREIGN)}) ", line)]


def every(*programs: str) -> list[str]:
    """The commands of all pages that begin with one of these, settings of the environment aside."""
    found = rf"(\w+=\S+ )*({'|'.join(programs)}) "
    return [command for page in PAGES for command in commands(page) if re.match(found, command)]


def tree(name: str, schema: type, *overrides: str) -> DictConfig:
    """The options as `python -m deploy.NAME` composes them."""
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "deploy" / "conf")):
        return compose(name, list(overrides))


def modules() -> list[tuple[str, list[str]]]:
    """Every `python -m module words…` of the pages, in loops and behind `&&` too."""
    lines = [line.partition(" # ")[0] for page in PAGES for line in commands(page)]
    calls = [each for line in lines for each in re.findall(r"python -m ([^;&|]+)", line)]
    return [(words[0], [word for word in words[1:] if word != "…"]) for words in map(shlex.split, calls)]


def test_a_page_has_commands() -> None:
    for page in PAGES:
        assert commands(page), page
    assert {"deploy.local", "deploy.slurm", "deploy.plan", "deploy.prometheus", "deploy.report"} <= {
        name for name, _ in modules()
    }


def test_what_needs_an_engine_or_a_cluster_is_marked_as_not_run() -> None:
    assert [command for command in every("docker", "kubectl") if MARK not in command] == []


def test_every_module_that_is_named_can_be_started() -> None:
    for name, _ in modules():
        found = importlib.util.find_spec(name)
        assert found is not None, name
        if found.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__"), name


def test_targets_of_make_exist_and_take_the_options() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in every("make"):
        _, target, *rest = shlex.split(command.partition(" # ")[0])
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        assert not rest, f"{command}: options of make are not looked at here"


@pytest.mark.parametrize(
    "words", [words for name, words in modules() if name == "deploy.local" and "=" in "".join(words[:1])], ids=" ".join
)
def test_local_runs_are_accepted(words: list[str]) -> None:
    whole = tree("local", LocalRoot, *words)
    OmegaConf.to_object(whole)
    check_roles(whole, cold_start=bool(whole.cold_start))
    assert bool(whole.cold_start) != bool(whole.model)


@pytest.mark.parametrize("words", [words for name, words in modules() if name == "deploy.slurm"], ids=" ".join)
def test_commands_of_slurm_are_accepted(words: list[str]) -> None:
    command, *options = words
    if command == "up":
        whole = slurm_tree(*options)
        OmegaConf.to_object(whole)
        check_roles(roles_tree(whole), cold_start=bool(whole.cold_start))
    else:
        given = {word.partition("=")[0] for word in options if "=" in word}
        assert given <= {*SLURM_COMMANDS[command][1], "run.dir", "run.name"}


@pytest.mark.parametrize(
    "words", [words for name, words in modules() if name == "deploy.plan" and words[:1] != ["measure"]], ids=" ".join
)
def test_plans_are_accepted(words: list[str]) -> None:
    config = OmegaConf.to_object(tree("plan", PlanRoot, *words))
    assert isinstance(config, PlanRoot)
    check_options(config)


def test_roles_by_hand_are_accepted(tmp_path: Path) -> None:
    for name, words in modules():
        if name in MODULES:
            assert {"--config-dir", "--config-name"} <= set(words), "started from the files of a run"
            accepted([name, *(word for word in words if "=" in word)])

"""The launcher's tree: the union of all roles, projected back to each of them; what cannot work is refused at once."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from deploy.local import layout
from deploy.local.config import RENAMED, ROOTS, LocalRoot, launcher, projection
from learner.broker.config import JOURNAL

CONF = Path(__file__).parents[2] / "deploy" / "conf"
MODULES = {
    "actor": "actors",
    "broker": "learner.broker",
    "learner": "learner",
    "sft": "learner.sft",
    "verifier": "verifier",
}


def tree(*overrides: str, conf: Path = CONF, name: str = "local") -> DictConfig:
    """The launcher's tree, as `python -m deploy.local` composes it."""
    ConfigStore.instance().store(name="local_schema", node=LocalRoot)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        return compose(name, list(overrides))


def read_back(role: str, text: str) -> Any:
    """What `role` makes of its file: its schema overlaid, as an object."""
    content = OmegaConf.create(text)
    assert isinstance(content, DictConfig)
    del content["defaults"]
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ROOTS[role]), content))


def test_the_tree_holds_every_root_field_of_every_role() -> None:
    here = {each.name for each in fields(LocalRoot)}
    for role, root in ROOTS.items():
        for each in fields(root):
            assert RENAMED.get((role, each.name), each.name) in here, f"{role}: {each.name}"


def test_quickstart_is_accepted_as_it_stands() -> None:
    config = launcher(tree("experiment=quickstart"))
    assert config.cold_start


def test_an_override_reaches_the_role_that_reads_it() -> None:
    whole = tree("experiment=quickstart", "loss.name=cispo", "loss.corrections=[]", "engine.max_num_seqs=7", "actors=2")
    assert launcher(whole).actors == 2
    assert read_back("learner", layout.role_config_text(whole, "learner")).loss.name == "cispo"
    assert read_back("actor", layout.role_config_text(whole, "actor")).engine.max_num_seqs == 7


def test_the_two_optimizers_do_not_mix() -> None:
    whole = tree("experiment=quickstart", "optimizer.lr=0.5", "sft_optimizer.lr=0.25")
    assert projection(whole, "learner")["optimizer"]["lr"] == 0.5
    assert projection(whole, "sft")["optimizer"]["lr"] == 0.25


def test_the_two_policy_sections_do_not_mix() -> None:
    whole = tree("experiment=quickstart", "policy.lora_rank=4")
    assert projection(whole, "learner")["policy"]["lora_rank"] == 4
    assert projection(whole, "sft")["policy"]["lora_rank"] == 0


def test_the_cold_start_belongs_to_the_run() -> None:
    whole = tree("experiment=quickstart", "run.name=mine", "run.seed=5")
    sft = read_back("sft", layout.role_config_text(whole, "sft")).sft
    assert (sft.out, sft.seed) == ("runs/mine/cold_start", 5)
    assert read_back("learner", layout.role_config_text(whole, "learner")).model == "runs/mine/cold_start/model"


def test_roles_learn_the_address_that_the_broker_got() -> None:
    whole = tree("experiment=quickstart", "metrics_port=9000")
    text = layout.role_config_text(whole, "actor", broker="tcp://127.0.0.1:4242")
    assert read_back("actor", text).broker == "tcp://127.0.0.1:4242"


def test_a_restarted_broker_reads_the_address_and_the_port_that_the_first_one_got() -> None:
    text = layout.role_config_text(tree("experiment=quickstart"), "broker", broker="tcp://[::1]:42", metrics_port=43)
    config = read_back("broker", text)
    assert (config.broker, config.metrics_port) == ("tcp://[::1]:42", 43)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, None),
        ('{"broker": "tcp://127.0.0.1:4', None),
        ('{"broker": "tcp://127.0.0.1:4", "http": "http://127.0.0.1:5", "pid": 6}', None),
        ('{"broker": "tcp://127.0.0.1:4", "http": "http://127.0.0.1:5", "pid": 7}', ("tcp://127.0.0.1:4", 5)),
    ],
)
def test_a_broker_listens_where_its_own_file_says_and_not_that_of_a_dead_one(
    tmp_path: Path, content: str | None, found: tuple[str, int] | None
) -> None:
    if content is not None:
        (tmp_path / "broker.json").write_text(content)
    assert layout.broker_address(tmp_path, 7) == found


def test_only_the_broker_gets_the_metrics_port() -> None:
    whole = tree("experiment=quickstart", "metrics_port=9000")
    ports = {role: projection(whole, role).get("metrics_port", 0) for role in ROOTS}
    assert ports == {"broker": 9000, "learner": 0, "actor": 0, "verifier": 0, "sft": 0}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["cold_start=false"], "no model to train: give model=<HF checkpoint directory>, or cold_start=true"),
        (["model=somewhere"], "model=somewhere with cold_start=true"),
        (["cold_start=false", "model=nowhere"], "model=nowhere: must be a directory with an HF checkpoint"),
        (["placement=best"], "placement=best: must be one of auto, none"),
        (["view=3d"], "view=3d: must be one of auto, rich, plain, none"),
        (["actors=-1"], "actors=-1: must be 0 (they join by hand) or more"),
        (["resume=true", "overwrite=true"], "resume=true with overwrite=true: the run to go on with would be cleared"),
        (["checkpoint.keep=0"], "checkpoint.keep=0: must be at least 1"),
        (["end_seconds=0"], "end_seconds=0.0: must be more than 0 seconds"),
        (["restarts=-1"], "restarts=-1: must be 0 (the first death ends the run) or more"),
        (["restart_seconds=31"], "restart_seconds=31.0: must lie in [0, 30], the longest pause"),
        (["restart_seconds=-1"], "restart_seconds=-1.0: must lie in [0, 30]"),
        (["restart_reset_seconds=0"], "restart_reset_seconds=0.0: must be more than 0 seconds"),
        (["stream.group_size=1"], "stream.group_size=1: a group-relative advantage needs at least 2 rollouts"),
        (["loss.name=dpo"], "loss.name=dpo: must be one of ppo_clip, decoupled_ppo"),
        (["engine.dtype=int3"], "engine.dtype=int3: must be one of"),
        (["verifier.workers=-1"], "verifier.workers=-1: must be 0 (one a core) or more"),
        (["sft_optimizer.lr=0"], "sft_optimizer.lr=0.0: must be above 0"),
        (["policy.lora_rank=-1"], "policy.lora_rank=-1: must be 0 (no adapters) or more"),
        (["sft_policy.param_dtype=int4"], "sft_policy.param_dtype=int4: must be one of"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        launcher(tree("experiment=quickstart", *overrides))
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize("override", ["loss.nam=cispo", "actor=3", "learner.steps=many", "experiment=nonesuch"])
def test_a_misspelt_option_or_a_wrong_type_is_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        tree(override)


def test_a_directory_that_holds_a_run_is_refused_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    for name in ("restarts.jsonl", "journal.sqlite", "journal.sqlite-wal"):
        (tmp_path / name).write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds a run already \(summary.json\).*overwrite=true"):
        layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False)
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_new_run_finds_no_journal_of_one_that_ended_before_its_first_step_and_a_resumed_one_does(
    tmp_path: Path,
) -> None:
    (tmp_path / "journal.sqlite").write_text("")
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "journal.sqlite").write_text("")
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000001" / "progress.json").write_text("{}")
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False, resume=True)
    assert (tmp_path / "journal.sqlite").exists()


def test_a_run_is_resumed_only_where_it_left_a_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "broker.json").write_text("{}")
    unfinished = tmp_path / "checkpoints" / "step_00000002.partial"
    unfinished.mkdir(parents=True)
    sentence = r"resume=true: .* holds neither a whole checkpoint nor a journal to go on from; start it anew with ov"
    with pytest.raises(ValueError, match=sentence):
        layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False, resume=True)
    unfinished.rename(whole := unfinished.with_suffix(""))
    with pytest.raises(ValueError, match=sentence):
        layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False, resume=True)
    (whole / "progress.json").write_text("{}")
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]
    with pytest.raises(ValueError, match=r"go on with it with resume=true, or clear it with overwrite=true"):
        layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False)
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_alone_is_enough_to_go_on_wherever_it_lies_and_goes_with_the_run(tmp_path: Path) -> None:
    directory, journal = tmp_path / "run", tmp_path / "fast disk" / "broker.sqlite"
    journal.parent.mkdir()
    directory.mkdir()
    journal.write_text("")
    layout.claim(directory, journal, overwrite=False, resume=True)
    assert not layout.has_checkpoint(directory)
    assert journal.exists()
    layout.claim(directory, journal, overwrite=True)
    assert not journal.exists()


def test_the_learner_resumes_when_the_launcher_does() -> None:
    for resume in (False, True):
        whole = tree("experiment=quickstart", f"resume={resume}")
        assert read_back("learner", layout.role_config_text(whole, "learner")).checkpoint.resume is resume


def test_a_directory_whose_run_goes_on_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    waiting = "import sys; print(flush=True); sys.stdin.read()  # broker"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", waiting], **pipes) as running:
        assert running.stdout is not None
        running.stdout.readline()  # only now its command line is surely its own
        (tmp_path / "broker.json").write_text(f'{{"pid": {running.pid}}}')
        with pytest.raises(ValueError, match="a run is going on there"):
            layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=True)
        running.communicate()
    layout.claim(tmp_path, tmp_path / JOURNAL, overwrite=False)
    assert not (tmp_path / "broker.json").exists()


def test_the_launcher_starts_again_from_what_it_wrote(tmp_path: Path) -> None:
    whole = tree("experiment=quickstart", f"run.dir={tmp_path}", "loss.clip_high=0.3")
    layout.write_launch(whole)
    written = OmegaConf.load(tmp_path / "config" / "run_local.yaml")
    assert isinstance(written, DictConfig)
    del written["defaults"]
    again = OmegaConf.merge(OmegaConf.structured(LocalRoot), written)
    assert OmegaConf.to_container(again) == OmegaConf.to_container(whole, resolve=True)


@pytest.mark.parametrize("role", sorted(set(ROOTS) - {"sft", "learner"}))  # those import torch; the schema is alike
def test_a_role_reads_its_file_by_name_and_still_refuses_a_misspelt_option(tmp_path: Path, role: str) -> None:
    whole = tree("experiment=quickstart", f"run.dir={tmp_path}", "stream.group_size=6", "engine.max_num_seqs=6")
    layout.write_config(whole, [role])
    command = [sys.executable, "-m", MODULES[role], "--config-dir", str(tmp_path / "config")]
    command += ["--config-name", f"run_{role}"]
    shown = subprocess.run([*command, "--cfg", "job"], capture_output=True, text=True, check=True, timeout=60)
    assert read_back(role, f"defaults: []\n{shown.stdout}") == read_back(role, layout.role_config_text(whole, role))
    refused = subprocess.run([*command, "brokr=x"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "Key 'brokr' not in" in refused.stderr

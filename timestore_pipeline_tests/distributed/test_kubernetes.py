"""``deploy/kubernetes``, as far as can be tried without a cluster: what Dagster makes of the values, and the manifests.

The chart itself is not installed from any package registry, so what it makes of the values is stated here as data: the
names under which it puts them into ``dagster.yaml``. That the chart does so was not run.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, cast

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.test_utils import create_run_for_test

from timestore_pipeline.settings import Settings, variable_name
from timestore_pipeline_tests.e2e.conftest import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
MANIFESTS = [
    document
    for name in ("settings.yaml", "pushgateway.yaml", "serve.yaml")
    for document in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
]
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
KUBERNETES_VERSIONS = ("1.33", kubernetes_validate.latest_version())


def snake(value: Any, depth: int) -> Any:
    """Keys as Dagster writes them, ``depth`` levels deep: below are Kubernetes' own objects."""
    if not isinstance(value, dict) or depth == 0:
        return value
    return {re.sub("([A-Z])", r"_\1", key).lower(): snake(each, depth - 1) for key, each in value.items()}


def launcher_config() -> dict[str, Any]:
    """The configuration of the run launcher, with what the chart adds by its own names."""
    config = dict(VALUES["runLauncher"]["config"]["k8sRunLauncher"])
    inner = {key: config.pop(key) for key in ("resources", "securityContext")}
    references = {key: [each["name"] for each in config.pop(key)] for key in ("envConfigMaps", "envSecrets")}
    return {
        **snake(config, 1),
        **snake(inner, 1),
        **snake(references, 1),
        "run_k8s_config": snake(config["runK8sConfig"], 2),
        "dagster_home": VALUES["global"]["dagsterHome"],
        "service_account_name": VALUES["serviceAccount"]["name"],
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "instance_config_map": "timestore-instance",
        "job_namespace": "timestore",
        "load_incluster_config": False,
    }


def container_context() -> dict[str, Any]:
    """What the code server says of itself, for the pods of its runs (``includeConfigInLaunchedRuns``)."""
    return {
        "k8s": {
            "env": CODE["env"],
            "env_config_maps": [each["name"] for each in CODE["envConfigMaps"]],
            "env_secrets": [each["name"] for each in CODE["envSecrets"]],
            "volumes": CODE["volumes"],
            "volume_mounts": CODE["volumeMounts"],
        }
    }


def checked(schema: Any, config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with its defaults, as Dagster checks it."""
    result = process_config(schema, config)
    assert result.success, [error.message for error in result.errors or ()]
    assert result.value is not None
    return dict(result.value)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The Kubernetes job that the launcher makes for a run of ours."""
    import kubernetes
    from dagster_k8s.launcher import K8sRunLauncher

    made: list[tuple[str, Any]] = []

    class Cluster:
        def create_namespaced_job(self, namespace: str, body: Any, **_: Any) -> None:
            made.append((namespace, body))

    monkeypatch.setattr("dagster_k8s.launcher.load_kubernetes_config", lambda **_: None)
    config = checked(K8sRunLauncher.config_type(), launcher_config())
    with dg.instance_for_test() as instance:
        launcher = K8sRunLauncher(**config, k8s_client_batch_api=Cluster(), k8s_client_core_api=object())
        launcher.register_instance(instance)
        code = RepositoryPythonOrigin(
            executable_path="/opt/timestore/bin/python",
            code_pointer=ModuleCodePointer(CODE["dagsterApiGrpcArgs"][1], "defs"),
            container_image=image(CODE),
            entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
            container_context=container_context(),
        )
        run = create_run_for_test(
            instance, job_name="partition_build", job_code_origin=JobPythonOrigin("partition_build", code)
        )
        launcher.launch_run(LaunchRunContext(run, workspace=None))
    ((namespace, body),) = made
    assert namespace == "timestore"
    return cast("dict[str, Any]", kubernetes.client.ApiClient().sanitize_for_serialization(body))


def image(part: dict[str, Any]) -> str:
    return f"{part['image']['repository']}:{part['image']['tag']}"


@pytest.mark.long
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_job_of_a_run_is_one_that_kubernetes_takes(job: dict[str, Any], version: str):
    kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.long
def test_the_job_of_a_run_has_its_limits_its_settings_and_nothing_that_lasts(job: dict[str, Any]):
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert container["image"] == image(CODE)
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"memory": "2Gi"},
    }
    sources = {name: each[name]["name"] for each in container["envFrom"] for name in each if "Ref" in name}
    assert sources == {"configMapRef": "timestore-settings", "secretRef": "timestore-secrets"}
    assert {each["name"] for each in container["env"]} >= {"TIMESTORE_HOME", "TIMESTORE_DATASETS_FILE", "DAGSTER_HOME"}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} == {"configMap", "emptyDir"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["serviceAccountName"] == "timestore"
    assert (pod["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_what_is_applied_beside_the_chart_is_what_kubernetes_takes(manifest: dict[str, Any], version: str):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_instance_that_the_values_describe_is_one_that_dagster_takes():
    daemon, one_host = VALUES["dagsterDaemon"], yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    queued = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]
    instance = {
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher_config()},
        "run_coordinator": {
            "module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator", "config": snake(queued, 1),
        },
        "concurrency": {
            "pools": snake(VALUES["concurrency"]["pools"], 1), "runs": snake(VALUES["concurrency"]["runs"], 1),
        },
        "run_monitoring": snake(daemon["runMonitoring"], 1),
        "run_retries": snake(daemon["runRetries"], 1),
        "sensors": snake(daemon["sensors"], 1),
        "schedules": snake(daemon["schedules"], 1),
        "retention": snake({key: VALUES["retention"][key] for key in ("sensor", "schedule")}, 2),
        "telemetry": VALUES["telemetry"],
    }  # fmt: skip

    checked(dagster_instance_config_schema(), instance)
    for same in ("run_retries", "retention", "sensors", "schedules", "telemetry"):
        assert instance[same] == one_host[same], same
    assert instance["concurrency"]["pools"] == one_host["concurrency"]["pools"]
    coordinated = one_host["run_coordinator"]["config"]
    assert instance["run_coordinator"]["config"].items() <= coordinated.items()


def test_all_pods_have_one_image_of_the_release_that_dagster_and_chart_are():
    parts = [CODE, VALUES["dagsterDaemon"], VALUES["dagsterWebserver"]]
    (serving,) = [
        each for each in MANIFESTS if each["metadata"]["name"] == "timestore-serve" and "template" in each["spec"]
    ]

    assert {image(part) for part in parts} == {serving["spec"]["template"]["spec"]["containers"][0]["image"]}
    text = (FOLDER / "values.yaml").read_text(encoding="utf-8")
    assert f"--version {dg.__version__} " in text


def test_what_is_set_are_settings_and_none_of_them_is_a_secret():
    (settings,) = [each["data"] for each in MANIFESTS if each["kind"] == "ConfigMap"]
    named = {*settings, *(each["name"] for each in CODE["env"])}
    secret = {
        variable_name(name) for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    }

    ours = {name for name in named if name.startswith("TIMESTORE_")}
    assert ours <= {variable_name(field) for field in Settings.model_fields}
    assert not ours & secret
    assert "persistentVolumeClaim" not in "".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())


def test_the_image_is_made_of_what_is_there_at_the_tested_versions():
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")

    copied = [words for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for words in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored)
    extras = re.findall(r"'\.\[(.+)\]'", text)[0].split(",")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) <= declared.keys()
    user = VALUES["dagsterDaemon"]["podSecurityContext"]["runAsUser"]
    assert f"\nUSER {user}:{user}\n" in text
    assert text.count("--constraint constraints.txt") == text.count("pip install")

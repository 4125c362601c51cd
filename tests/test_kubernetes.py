"""What lies under deploy/kubernetes/: by the schemas of Kubernetes, and against the real program."""

import shutil
import time
import tomllib

import jsonschema
import kuberay
import kubernetes_validate
import pytest
import requests
import typer
import yaml
from jina.parsers import get_main_parser
from kuberay import groups_of
from kustomize import KUBERNETES, PARTS, ROOT, Cluster, container_of, resolve
from packaging.requirements import Requirement

from finetuner.access import Scope, TokenStore
from finetuner.cli import app
from finetuner.launcher import LauncherOptions
from finetuner.schema import read
from finetuner.serve import flow_path

VARIANTS = ("base", "overlays/gpu", "overlays/ray")
VERSION = "1.34"  # of Kubernetes
TOKENS = "finetuner-tokens"
QUEUE = "finetuner_queue_tokens"


@pytest.fixture
def on_ray():
    return resolve(KUBERNETES / "overlays/ray")


@pytest.fixture(params=VARIANTS)
def resources(request):
    return resolve(KUBERNETES / request.param)


def of_kind(resources, kind):
    return [row for row in resources.values() if row["kind"] == kind]


def test_all_files_belong_to_it():
    named = {KUBERNETES / variant / "kustomization.yaml" for variant in VARIANTS}
    for folder in (KUBERNETES / variant for variant in VARIANTS):
        row = yaml.safe_load((folder / "kustomization.yaml").read_text())
        generated = [*row.get("configMapGenerator", []), *row.get("secretGenerator", [])]
        named |= {folder / name for name in row["resources"] if name.endswith(".yml")}
        named |= {folder / name for one in generated for name in one["files"]}
        named |= {folder / one["path"] for one in row.get("patches", [])}
    assert named == {path for path in KUBERNETES.rglob("*") if path.is_file()}


def test_each_resource_has_the_form_that_kubernetes_wants(resources):
    for row in resources.values():
        if row["kind"] == "RayCluster":
            kuberay.validate(row, VERSION)
        else:
            kubernetes_validate.validate(row, VERSION, strict=True)


def test_the_check_of_the_form_finds_a_wrong_word():
    row = resolve(KUBERNETES / "base")["Deployment", "encoder"]
    row["spec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        kubernetes_validate.validate(row, VERSION, strict=True)


def test_the_check_of_the_form_finds_a_wrong_word_in_a_ray_cluster(on_ray):
    cluster = on_ray["RayCluster", "ray"]
    pod = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["terminationGraceSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        kuberay.validate(cluster, VERSION)
    del pod["terminationGraceSeconds"]
    cluster["spec"]["workerGroups"] = []
    with pytest.raises(jsonschema.ValidationError, match="'workerGroups' was unexpected"):
        kuberay.validate(cluster, VERSION)


def selects(selector, labels):
    """Whether a selector of labels or expressions fits; only `In` is known."""
    expressions = selector.get("matchExpressions", [])
    assert {row["operator"] for row in expressions} <= {"In"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(row["key"]) in row["values"] for row in expressions
    )


def test_selectors_mean_the_pods_that_they_should(resources):
    labels = {
        part: resources["Deployment", part]["spec"]["template"]["metadata"]["labels"]
        for part in PARTS
    }

    def meant(selector):
        return [part for part in PARTS if selects(selector, labels[part])]

    for part in PARTS:
        spec = resources["Deployment", part]["spec"]
        assert meant(spec["selector"]) == [part]
        assert meant({"matchLabels": resources["Service", part]["spec"]["selector"]}) == [part]
        for row in spec["template"]["spec"].get("topologySpreadConstraints", []):
            assert meant(row["labelSelector"]) == [part]
    assert meant(resources["PodDisruptionBudget", "encoder"]["spec"]["selector"]) == ["encoder"]
    policies = {row["metadata"]["name"]: row["spec"] for row in of_kind(resources, "NetworkPolicy")}
    assert meant(policies["executors"]["podSelector"]) == ["encoder", "finetuner"]
    assert meant(policies["gateway"]["podSelector"]) == ["gateway"]
    from_gateway, from_monitoring = policies["executors"]["ingress"]
    (peer,) = from_gateway["from"]
    assert meant(peer["podSelector"]) == ["gateway"]
    assert "namespaceSelector" not in peer
    (peer,) = from_monitoring["from"]
    assert set(peer) == {"namespaceSelector"}
    assert from_monitoring["ports"] == [{"port": 9090}]


def test_what_a_pod_names_is_there(resources):
    for part in PARTS:
        spec = resources["Deployment", part]["spec"]["template"]["spec"]
        container = container_of(resources["Deployment", part])
        for volume in spec["volumes"]:
            match volume:
                case {"persistentVolumeClaim": {"claimName": name}}:
                    claim = resources["PersistentVolumeClaim", name]
                    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
                case {"configMap": {"name": name}}:
                    assert ("ConfigMap", name) in resources
                case {"secret": {"secretName": name}}:
                    assert ("Secret", name) in resources
                case _:
                    assert "emptyDir" in volume
        mounted = {row["name"]: row["mountPath"] for row in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
        assert (mounted["data"], mounted["tmp"]) == ("/data", "/tmp")
        ports = {row["name"]: row["containerPort"] for row in container["ports"]}
        for row in resources["Service", part]["spec"]["ports"]:
            assert ports[row["targetPort"]] == row["port"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe].get("httpGet", {}).get("port") or container[probe]["grpc"]
            assert asked in ("http", {"port": ports["grpc"]})


def test_a_pod_may_do_no_more_than_it_must(resources):
    dockerfile = (ROOT / "Dockerfile").read_text()
    for part in PARTS:
        spec = resources["Deployment", part]["spec"]["template"]["spec"]
        own = container_of(resources["Deployment", part])["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert f"useradd --uid {spec['securityContext']['runAsUser']} " in dockerfile
        assert spec["automountServiceAccountToken"] is False


def test_a_command_line_is_one_that_the_program_takes(resources):
    source = "".join(path.read_text() for path in (ROOT / "finetuner").rglob("*.py"))
    for part in PARTS:
        container = container_of(resources["Deployment", part])
        words = container["args"]
        if words[0] == "jina":
            parsed = get_main_parser().parse_args(words[1:])
            assert parsed.native  # without it, SIGTERM leaves the executor behind
            assert (ROOT / parsed.uses).is_file()
            assert parsed.port == [container["ports"][0]["containerPort"]]
        else:
            assert words[:2] == ["finetuner", "serve"]
            command = typer.main.get_command(app).commands["serve"]
            command.make_context("serve", words[2:])
        names = {row["name"] for row in container["env"]} - {"HOME"}
        assert {name for name in names if name not in source} == set()


def test_with_gpus_only_what_must_is_different():
    base, gpu = (resolve(KUBERNETES / variant) for variant in ("base", "overlays/gpu"))
    for part in PARTS:
        before, after = (container_of(rows["Deployment", part]) for rows in (base, gpu))
        assert (before["image"], after["image"]) == ("finetuner-flow:cpu", "finetuner-flow:gpu")
        more = {} if part == "gateway" else {"nvidia.com/gpu": "1"}
        assert after["resources"]["limits"] == before["resources"]["limits"] | more
        more = ['--uses-with={"device": "cuda"}'] if part == "encoder" else []
        assert after["args"] == before["args"] + more


def test_on_ray_only_what_must_is_different(on_ray):
    base = resolve(KUBERNETES / "base")
    added = {("RayCluster", "ray"), ("NetworkPolicy", "ray")}
    assert set(on_ray) - set(base) == added
    for part in PARTS:
        before, after = (container_of(rows["Deployment", part]) for rows in (base, on_ray))
        assert (before["image"], after["image"]) == ("finetuner-flow:cpu", "finetuner-flow:ray")
        del before["image"], after["image"]
        if part == "finetuner":
            assert after["args"][:-1] == before["args"]
            assert after["args"][-1].startswith("--uses-with=")
            del before["args"], after["args"], before["resources"], after["resources"]
        assert after == before


def test_the_finetuner_finds_the_ray_cluster(on_ray):
    words = container_of(on_ray["Deployment", "finetuner"])["args"]
    settings = get_main_parser().parse_args(words[1:]).uses_with
    assert settings.pop("max_parallel_runs") > 1
    options = read(LauncherOptions, settings, "FinetunerExecutor")
    assert (options.launcher, options.gives_gpus) == ("ray", False)
    head = on_ray["RayCluster", "ray"]["spec"]["headGroupSpec"]
    ports = {row["name"]: row["containerPort"] for row in container_of(head)["ports"]}
    # KubeRay makes a Service of this name, with the ports that the head's container names.
    assert options.ray_address == f"ray://ray-head-svc:{ports['client']}"
    assert on_ray["NetworkPolicy", "ray"]["spec"]["ingress"][1]["ports"] == [
        {"port": ports["client"]}
    ]


def test_only_the_finetuner_reaches_the_ray_cluster(on_ray):
    groups = groups_of(on_ray["RayCluster", "ray"])
    labels = {part: on_ray["Deployment", part]["spec"]["template"] for part in PARTS}
    labels |= {group.get("groupName", "head"): group["template"] for group in groups}

    def meant(peer):
        selector = peer["podSelector"]
        return [p for p, pod in labels.items() if selects(selector, pod["metadata"]["labels"])]

    policies = {row["metadata"]["name"]: row["spec"] for row in of_kind(on_ray, "NetworkPolicy")}
    assert meant(policies["ray"]) == ["head", "runs"]
    among_themselves, from_finetuner = policies["ray"]["ingress"]
    assert [meant(peer) for peer in among_themselves["from"]] == [["head", "runs"]]
    assert [meant(peer) for peer in from_finetuner["from"]] == [["finetuner"]]
    assert not {"head", "runs"} & {*meant(policies["executors"]), *meant(policies["gateway"])}


def test_the_ray_version_is_that_of_the_image(on_ray):
    version = on_ray["RayCluster", "ray"]["spec"]["rayVersion"]
    assert f"ray=={version}" in (ROOT / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["ray"]
    assert Requirement(wanted).specifier.contains(version)
    assert container_of(groups_of(on_ray["RayCluster", "ray"])[0])["image"].endswith(":ray")
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "\nARG EXTRAS=\n" in dockerfile
    assert '".[$DEVICE${EXTRAS:+,$EXTRAS}]"' in dockerfile


def test_a_ray_node_has_what_the_finetuner_has(on_ray):
    pod = on_ray["Deployment", "finetuner"]["spec"]["template"]["spec"]
    own = container_of(on_ray["Deployment", "finetuner"])
    variables = {row["name"]: row["value"] for row in own["env"]} | {"RAY_USAGE_STATS_ENABLED": "0"}
    for group in groups_of(on_ray["RayCluster", "ray"]):
        container = container_of(group)
        for key in ("image", "securityContext", "volumeMounts"):
            assert container[key] == own[key]
        there = group["template"]["spec"]
        for key in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
            assert there[key] == pod[key]
        assert there["volumes"][:2] == pod["volumes"][:2]
        assert there["volumes"][2]["emptyDir"]["medium"] == "Memory"
        assert {row["name"]: row["value"] for row in container["env"]}.items() <= variables.items()
        ports = {row["name"] for row in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["tcpSocket"]["port"] in ports


def test_ray_start_takes_what_the_ray_cluster_gives(on_ray):
    scripts = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed")
    head, workers = groups_of(on_ray["RayCluster", "ray"])
    words = [f"--{name}={value}" for name, value in head["rayStartParams"].items()]
    parsed = scripts.start.make_context("start", ["--head", *words]).params
    assert (parsed["num_cpus"], parsed["include_dashboard"]) == (0, False)
    assert parsed["ray_client_server_port"] is None  # 10001 is Ray's own choice
    words = [f"--{name}={value}" for name, value in workers["rayStartParams"].items()]
    parsed = scripts.start.make_context("start", words).params
    container = container_of(workers)
    assert str(parsed["num_cpus"]) == container["resources"]["requests"]["cpu"]
    assert container["ports"] == [{"name": "raylet", "containerPort": parsed["node_manager_port"]}]


def test_the_flow_names_the_services(resources):
    flow = yaml.safe_load(resources["ConfigMap", "finetuner-flow"]["data"]["flow.yml"])
    asked = {(row["host"], row["port"]) for row in flow["executors"]}
    services = [resources["Service", name] for name in ("encoder", "finetuner")]
    assert asked == {(s["metadata"]["name"], s["spec"]["ports"][0]["port"]) for s in services}
    # Only of a headless service does the name stand for each replica.
    assert {row["spec"]["clusterIP"] for row in services} == {"None"}
    ports = [row["port"] for row in resources["Service", "gateway"]["spec"]["ports"]]
    assert ports == flow["gateway"]["port"]
    gateway = yaml.safe_load(flow_path("flows/all.yml").read_text())["gateway"]
    assert flow["gateway"]["port"] == gateway["port"]


def test_the_autoscaler_counts_what_an_encoder_tells(resources):
    spec = resources["HorizontalPodAutoscaler", "encoder"]["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in resources
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"]["name"] == QUEUE  # which the slow test reads
    deployment = resources["Deployment", "encoder"]
    assert "replicas" not in deployment["spec"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    ports = {row["name"]: row["containerPort"] for row in container_of(deployment)["ports"]}
    assert annotations["prometheus.io/port"] == str(ports["metrics"])
    assert QUEUE in (ROOT / "deploy/README.md").read_text()


def test_the_example_of_tokens_can_be_read_and_opens_nothing(resources, tmp_path):
    (tmp_path / "access").mkdir()
    text = resources["Secret", TOKENS]["stringData"]["tokens.json"]
    (tmp_path / "access/tokens.json").write_text(text)
    store = TokenStore(tmp_path)
    assert [token.name for token in store.list()] == ["example"]
    assert store.find("example") is None


ROWS = [[f"{form} {topic}", topic] for topic in "abc" for form in ("one", "two", "three", "four")]


@pytest.fixture
def cluster(tmp_path, tiny_model_folder):
    """The containers of the base, and a session with a token of their volume."""
    volume, folder = tmp_path / "volume", tmp_path / "containers"
    shutil.copytree(tiny_model_folder, volume / "models" / "tiny")
    folder.mkdir()
    cluster = Cluster(resolve(KUBERNETES / "base"), folder, volume)
    cluster.session = requests.Session()
    secret = TokenStore(volume).create("test", [Scope.ADMIN])
    cluster.session.headers["Authorization"] = f"Bearer {secret}"
    yield cluster
    cluster.kill()


def wait_for(condition, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.3)


def is_ready(url):
    try:
        return requests.get(f"{url}/readyz", timeout=10).ok
    except requests.ConnectionError:
        return False


@pytest.mark.slow
def test_the_containers_train_and_serve_together(cluster):
    for part in PARTS:  # the gateway first: it waits for the others
        cluster.start(part)
    url, ask = cluster.url("51001"), cluster.session
    wait_for(lambda: is_ready(url))
    assert requests.get(f"{url}/runs", timeout=10).status_code == 401
    body = {"model": "tiny", "train_data": ROWS, "run_name": "a", "epochs": 1, "device": "cpu"}
    answer = ask.post(f"{url}/fit", json=body, timeout=60)
    assert answer.status_code == 201, answer.text
    wait_for(lambda: ask.get(f"{url}/runs/a/status", timeout=60).json()["status"] == "FINISHED")
    body = {"data": [{"text": "the river"}], "parameters": {"artifact": "a"}}
    answer = ask.post(f"{url}/encode", json=body, timeout=60)
    assert len(answer.json()["data"][0]["embedding"]) == 32, answer.text
    figures = requests.get(f"{cluster.url('9090')}/metrics", timeout=10).text
    assert f"\n{QUEUE} 0.0\n" in figures
    assert QUEUE in ask.get(f"{url}/metrics", timeout=10).text
    for part, process in cluster.processes.items():
        process.terminate()
        assert process.wait(30) == 0, cluster.log(part)

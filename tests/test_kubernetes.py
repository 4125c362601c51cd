"""What lies under deploy/kubernetes/: by the schemas of Kubernetes, and against the real program."""

import shutil
import time

import kubernetes_validate
import pytest
import requests
import typer
import yaml
from jina.parsers import get_main_parser
from kustomize import KUBERNETES, PARTS, ROOT, Cluster, container_of, resolve

from finetuner.access import Scope, TokenStore
from finetuner.cli import app
from finetuner.serve import flow_path

VARIANTS = ("base", "overlays/gpu")
VERSION = "1.34"  # of Kubernetes
TOKENS = "finetuner-tokens"
QUEUE = "finetuner_queue_tokens"


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
        kubernetes_validate.validate(row, VERSION, strict=True)


def test_the_check_of_the_form_finds_a_wrong_word():
    row = resolve(KUBERNETES / "base")["Deployment", "encoder"]
    row["spec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        kubernetes_validate.validate(row, VERSION, strict=True)


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
    base, gpu = (resolve(KUBERNETES / variant) for variant in VARIANTS)
    for part in PARTS:
        before, after = (container_of(rows["Deployment", part]) for rows in (base, gpu))
        assert (before["image"], after["image"]) == ("finetuner-flow:cpu", "finetuner-flow:gpu")
        more = {} if part == "gateway" else {"nvidia.com/gpu": "1"}
        assert after["resources"]["limits"] == before["resources"]["limits"] | more
        more = ['--uses-with={"device": "cuda"}'] if part == "encoder" else []
        assert after["args"] == before["args"] + more


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

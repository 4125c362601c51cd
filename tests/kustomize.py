"""The manifests of deploy/kubernetes/ without a cluster: resolved, and their containers as processes."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import yaml

import finetuner

ROOT = Path(finetuner.__file__).parents[1]
KUBERNETES = ROOT / "deploy/kubernetes"
PARTS = ("gateway", "encoder", "finetuner")
# What `resolve` knows of a kustomization.
KEYS = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
KEYS |= {"configMapGenerator", "secretGenerator"}


def resolve(folder):
    """Return the resources of a kustomization by kind and name, as `kubectl apply -k` would have them."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= KEYS
    found = {}
    for name in kustomization["resources"]:
        path = folder / name
        rows = resolve(path).values() if path.is_dir() else yaml.safe_load_all(path.read_text())
        for row in rows:
            assert (key := (row["kind"], row["metadata"]["name"])) not in found
            found[key] = row
    for kind, generator in (("ConfigMap", "configMapGenerator"), ("Secret", "secretGenerator")):
        for row in kustomization.get(generator, []):
            found[kind, row["name"]] = _generate(kind, row, folder)
    for row in kustomization.get("patches", []):
        patch = yaml.safe_load((folder / row["path"]).read_text())
        merge(found[patch["kind"], patch["metadata"]["name"]], patch)
    for row in found.values():
        _name_images(row, kustomization["images"])
    return found


def _generate(kind, row, folder):
    files = {name: (folder / name).read_text() for name in row["files"]}
    made = {"apiVersion": "v1", "kind": kind, "metadata": {"name": row["name"]}}
    return made | {"data" if kind == "ConfigMap" else "stringData": files}


def _name_images(row, images):
    """Give the containers of a resource of any kind their image: kustomize goes by the key alone."""
    for key, value in row.items() if isinstance(row, dict) else enumerate(row):
        if isinstance(value, dict | list):
            _name_images(value, images)
        for container in value if key == "containers" else ():
            for image in images:
                if container["image"].split(":")[0] == image["name"]:
                    container["image"] = f"{image['name']}:{image['newTag']}"


def merge(into, patch):
    """Merge as Kubernetes does: containers by their name, other lists as a whole."""
    for key, value in patch.items():
        if key == "containers":
            rows = {row["name"]: row for row in into[key]}
            for row in value:
                merge(rows[row["name"]], row)
        elif isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def container_of(made):
    """Return the only container of a Deployment, or of a group of a RayCluster."""
    (container,) = made.get("spec", made)["template"]["spec"]["containers"]
    return container


class Cluster:
    """The containers of the manifests as processes of this machine, on other ports and folders.

    :param resources: Of a kustomization.
    :param folder: For what would lie in the containers, and for what they print.
    :param volume: In place of the claim.
    """

    def __init__(self, resources, folder, volume):
        self._resources, self._folder = resources, folder
        self._ports = {port: free_port() for port in ("51000", "51001", "51002", "51003", "9090")}
        self._paths = {"/data": str(volume), "/tmp": str(folder)}
        self.processes = {}
        flow = self._local(resources["ConfigMap", "finetuner-flow"]["data"]["flow.yml"])
        flow = re.sub(r"host: (encoder|finetuner)$", "host: 127.0.0.1", flow, flags=re.MULTILINE)
        (folder / "flow.yml").write_text(flow)

    def _local(self, text):
        text = text.replace("/srv/finetuner", str(ROOT))
        text = text.replace("/etc/finetuner", str(self._folder))
        return re.sub(r"\b(5100[0-3]|9090)\b", lambda match: str(self._ports[match[1]]), text)

    def url(self, port):
        """Return where a container's port is."""
        return f"http://127.0.0.1:{self._ports[port]}"

    def start(self, part):
        """Start a container's own command, in its environment."""
        container = container_of(self._resources["Deployment", part])
        words = [self._local(word) for word in container["args"]]
        if part == "gateway":  # its command names no ports: they are the program's own
            words += ["--grpc-port", str(self._ports["51000"])]
            words += ["--http-port", str(self._ports["51001"])]
        given = {row["name"]: row["value"] for row in container["env"]}
        given = {name: self._paths.get(value, value) for name, value in given.items()}
        words[0] = str(Path(sys.executable).with_name(words[0]))
        with (self._folder / f"{part}.txt").open("wb") as log:
            self.processes[part] = subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | given | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, part):
        """Return what a container has printed."""
        return (self._folder / f"{part}.txt").read_text()

    def kill(self):
        """End all that is left."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port():
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

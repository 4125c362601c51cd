"""The form of a RayCluster (ray.io/v1) of KubeRay, as far as a manifest here may use it.

Written by hand from KubeRay's documentation of the resource: its own schema is in no package. Pods are
checked by that of Kubernetes.
"""

import jsonschema
import kubernetes_validate

_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_POD = {
    "type": "object",
    "required": ["spec"],
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}},
    "additionalProperties": False,
}


def _form(required, **properties):
    form = {"type": "object", "required": required, "properties": properties}
    return form | {"additionalProperties": False}


_HEAD = _form(
    ["rayStartParams", "template"],
    rayStartParams=_WORDS,
    template=_POD,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress={"type": "boolean"},
    headService={"type": "object"},
)
_WORKERS = _form(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_WORDS,
    template=_POD,
    scaleStrategy={"type": "object"},
)
_SPEC = _form(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=_WORDS,
    suspend={"type": "boolean"},
    managedBy={"type": "string"},
    gcsFaultToleranceOptions={"type": "object"},
)
SCHEMA = _form(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"type": "object", "required": ["name"]},
    spec=_SPEC,
)


def groups_of(cluster):
    """Return the groups of nodes, the head first."""
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def validate(cluster, version):
    """Refuse a RayCluster of another form, or one whose pods are none of that version of Kubernetes."""
    jsonschema.validate(cluster, SCHEMA)
    for group in groups_of(cluster):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)

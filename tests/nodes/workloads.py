"""What a user of the cluster runs."""

from __future__ import annotations

from typing import Any

IMAGE = "akocore.test/echo:1"


def backend(name: str, replicas: int, message: str = "") -> list[dict[str, Any]]:
    """A Deployment of pods that answer who they are, and a Service 80 → 8080."""
    labels = {"app": name}
    container = {
        "name": "echo",
        "image": IMAGE,
        "ports": [{"containerPort": 8080}],
        "env": [{"name": "MESSAGE", "value": message}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]


def ingress(name: str, host: str, ingress_class: str = "avi-lb") -> dict[str, Any]:
    """An Ingress of a host to a Service of the same name as itself."""
    service = {"name": name, "port": {"number": 80}}
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": service}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name},
        "spec": {
            "ingressClassName": ingress_class,
            "rules": [{"host": host, "http": {"paths": [path]}}],
        },
    }

"""A ValidatingAdmissionPolicy: what the controller may make in its own namespace, and nothing else.

The namespace of the Service Engines is privileged (they have their node's network), and a
StatefulSet is all that it takes to run something there.  So whoever got hold of the controller's
token could be root on the nodes, if an API server let it make any StatefulSet.  Under this policy
it makes the pods of Service Engines: their image, their command, their few capabilities, none of
the node's files, no Secret and no token of the API server.  (KEP-3488; in Kubernetes since 1.30.)
"""

from __future__ import annotations

from typing import Any, Final

from akocore.kube.authority import AUDIENCE, CA_CONFIG_MAP

__all__ = ["CAPABILITIES", "admission_policy"]

CAPABILITIES: Final = (
    *("NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"),
    *("CHOWN", "KILL", "SETGID", "SETUID"),
)
"""What the container of a Service Engine adds.

The first three are FRR's and the agent's; with the others the agent makes Envoy another user, who
has just NET_BIND_SERVICE, and ends it.
"""

_POD = "object.spec.template.spec"
_MAIN = "variables.pod.containers[0]"


def _rule(expression: str, message: str) -> dict[str, str]:
    return {"expression": expression, "message": message}


def _engines(image: str) -> list[dict[str, str]]:
    """What holds for every StatefulSet that the controller writes."""
    allowed = ", ".join(f"'{name}'" for name in CAPABILITIES)
    return [
        _rule(
            "size(variables.pod.containers) == 1 && !has(variables.pod.initContainers)"
            " && !has(object.spec.volumeClaimTemplates)",
            "A Service Engine is one container, without volumes of its own.",
        ),
        _rule(
            f"{_MAIN}.image == '{image}' && !has({_MAIN}.command) && !has({_MAIN}.lifecycle)"
            f" && size({_MAIN}.args) > 1 && {_MAIN}.args[0] == 'se' && {_MAIN}.args[1] == 'run'"
            f" && !has({_MAIN}.livenessProbe.exec) && !has({_MAIN}.readinessProbe.exec)",
            f"It runs `akocore se run` of {image}.",
        ),
        _rule(
            "has(variables.pod.automountServiceAccountToken)"
            " && !variables.pod.automountServiceAccountToken"
            " && (!has(variables.pod.serviceAccountName)"
            " || variables.pod.serviceAccountName in ['', 'default'])",
            "It has no token of the API server.",
        ),
        _rule(
            "(!has(variables.pod.hostPID) || !variables.pod.hostPID)"
            " && (!has(variables.pod.hostIPC) || !variables.pod.hostIPC)"
            " && variables.pod.volumes.all(v, has(v.emptyDir)"
            f" || (has(v.configMap) && v.configMap.name == '{CA_CONFIG_MAP}')"
            " || (has(v.projected) && size(v.projected.sources) == 1"
            " && v.projected.sources.all(s, has(s.serviceAccountToken)"
            " && has(s.serviceAccountToken.audience)"
            f" && s.serviceAccountToken.audience == '{AUDIENCE}')))",
            "Of its node it has the network alone, and it has no Secret: the certificate of the"
            f" CA, and a token for {AUDIENCE}.",
        ),
        _rule(
            f"has({_MAIN}.securityContext.allowPrivilegeEscalation)"
            f" && !{_MAIN}.securityContext.allowPrivilegeEscalation"
            f" && (!has({_MAIN}.securityContext.privileged)"
            f" || !{_MAIN}.securityContext.privileged)"
            f" && {_MAIN}.securityContext.capabilities.drop == ['ALL']"
            f" && {_MAIN}.securityContext.capabilities.add.all(c, c in [{allowed}])",
            f"Of capabilities it has at most {', '.join(CAPABILITIES)}.",
        ),
    ]


def _policy(
    name: str,
    account: str,
    group: str,
    resource: str,
    validations: list[dict[str, str]],
    variables: dict[str, str],
    namespace: str,
) -> list[dict[str, Any]]:
    """A policy for what one account writes of one resource, and its binding to a namespace."""
    kind = "admissionregistration.k8s.io/v1"
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {
        "apiGroups": [group],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resource],
    }
    return [
        {
            "apiVersion": kind,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [
                    {
                        "name": "by-the-controller",
                        "expression": f"request.userInfo.username == '{account}'",
                    }
                ],
                "variables": [{"name": n, "expression": e} for n, e in variables.items()],
                "validations": validations,
            },
        },
        {
            "apiVersion": kind,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": here},
            },
        },
    ]


def admission_policy(namespace: str, image: str) -> list[dict[str, Any]]:
    """The policies and their bindings, for controllers in ``namespace`` whose engines are
    ``image``.  A Secret of theirs is plain data: the API server would put a token of any account
    of the namespace into one of another type.
    """
    account = f"system:serviceaccount:{namespace}:akocore"
    plain = _rule(
        "!has(object.type) || object.type in ['', 'Opaque']", "A controller's Secrets are Opaque."
    )
    return [
        *_policy(
            "akocore-service-engines",
            account,
            "apps",
            "statefulsets",
            _engines(image),
            {"pod": _POD},
            namespace,
        ),
        *_policy("akocore-secrets", account, "", "secrets", [plain], {}, namespace),
    ]

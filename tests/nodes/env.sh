# Common settings of the scripts here.  Everything lives under $K; nothing listens or routes in the
# root network namespace.
H="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" # these scripts
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/akocore
K=${AKOCORE_NODES_HOME:-$CACHE/nodes} # images, state
G=$CACHE/programs                     # coredns, helm, echo, pause
version=$(awk '{for (i = 1; i < NF; i++) if ($i == "k8s.io/kubernetes") print $(i + 1)}' "$H/../cluster/kubernetes/go.mod" | head -1)
B=$CACHE/kubernetes-$version # kube-*, kubelet, kubectl, etcd
RUN=$K/run                   # pids, certificates, kubeconfigs, configuration
LOG=$K/logs
NS=ako-k8s       # network namespace of the control plane, with bridge br0 (10.77.0.1/24)
NODES=${NODES:-1} # n1..nN: each a net, mount, pid, uts and cgroup namespace of its own
CP=10.77.0.1 NODE_NET=10.77.0 POD_CIDR=10.244.0.0/16 SVC_CIDR=10.96.0.0/16 DNS_IP=10.96.0.10
mkdir -p "$K" "$G"
in_ns() { nsenter --net=/run/netns/$NS -- "$@"; }
kubectl() { in_ns "$B/kubectl" --kubeconfig "$RUN/pki/admin.kubeconfig" "$@"; }
# Whether the process of a pid file is ours still, and not another with its number.
alive() { [ -s "$1" ] && grep -qaE "$K|$H|$B" "/proc/$(cat "$1")/cmdline" 2>/dev/null; }
step() { [ -z "${VERBOSE:-}" ] || printf '%6.2f s  %s\n' "$(echo "$(date +%s.%N) - $T0" | bc)" "$*"; }
T0=$(date +%s.%N)

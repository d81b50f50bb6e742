"""``enableRhi`` where Service Engines have routers: accepted, or refused with the remedy."""

from __future__ import annotations

from akocore.config import Defaults
from akocore.kube.objects import (
    AddressRange,
    AviInfraSetting,
    AviInfraSettingSpec,
    BgpPeer,
    BgpProfile,
    NetworkSpec,
    SecretRef,
    ServiceEngineGroupSpec,
    decode,
)
from akocore.model import Refusal
from akocore.translate.classes import Infra, infra_of
from akocore.translate.rhi import check_passwords

PEER = BgpPeer(address="10.10.16.250", remote_as=6000, label="tor")
PLAIN = NetworkSpec(
    subnet="10.10.16.0/24", vip_ranges=(AddressRange(begin="10.10.16.10", end="10.10.16.99"),)
)


def network(peer: BgpPeer = PEER) -> NetworkSpec:
    return NetworkSpec(
        subnet=PLAIN.subnet,
        vip_ranges=PLAIN.vip_ranges,
        bgp=BgpProfile(local_as=5000, peers=(peer,)),
    )


def setting(spec: NetworkSpec, **more: object) -> tuple[Infra | None, tuple[Refusal, ...]]:
    document = {
        "metadata": {"name": "gold"},
        "spec": {"network": {"names": ["blue"], "enableRhi": True, **more}},
    }
    asked: AviInfraSettingSpec = decode(document, AviInfraSetting).spec
    groups = {"Default-Group": ServiceEngineGroupSpec()}
    return infra_of("gold", asked, Defaults(), groups, {"blue": spec}, speaks_bgp=True)


def test_a_network_with_peers_is_announced() -> None:
    infra, refusals = setting(network(), bgpPeerLabels=["tor"])
    assert refusals == ()
    assert infra is not None
    assert (infra.rhi, infra.bgp_peer_labels) == (True, ("tor",))


def test_a_network_without_bgp_is_refused_with_the_remedy() -> None:
    infra, (refusal,) = setting(PLAIN)
    assert infra is None
    assert (refusal.field, refusal.reason) == ("spec.network.enableRhi", "NetworkWithoutBgp")
    assert refusal.remedy.startswith("Network blue has no bgp: give it localAs and peers")


def test_a_label_that_no_peer_has_is_refused_and_those_there_are_named() -> None:
    infra, (refusal,) = setting(network(), bgpPeerLabels=["tor", "spine"])
    assert infra is None
    assert refusal.field == "spec.network.bgpPeerLabels[1]"
    assert refusal.remedy.endswith("has label spine. Its labels: tor.")


def test_a_peer_without_a_good_password_is_left_out_and_said_without_showing_it() -> None:
    peer = BgpPeer(
        address=PEER.address, remote_as=6000, password_secret=SecretRef(name="a", namespace="b")
    )
    (refusal,) = check_passwords("blue", network(peer), {})
    assert (refusal.field, refusal.warning) == ("spec.bgp.peers[0].passwordSecret", True)
    assert "Create Secret b/a with key password" in refusal.remedy
    (refusal,) = check_passwords("blue", network(peer), {("b", "a"): "two words"})
    assert (refusal.reason, refusal.warning) == ("InvalidPassword", True)
    assert "two words" not in str(refusal)
    assert check_passwords("blue", network(peer), {("b", "a"): "good"}) == ()
    assert check_passwords("blue", PLAIN, {}) == ()

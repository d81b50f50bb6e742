"""A directory of manifests, real Envoys, a real client."""

from __future__ import annotations

import asyncio

from akocore import status
from e2e.house import CLASS, House

LARGE = [
    {1, 9, 14},
    {2, 17},
    {3, 16},
    {4, 11, 19},
    {5, 10, 18},
    {6, 13},
    {8, 15, 20},
    {7, 12},
]
MEDIUM = [{1, 5, 9, 10, 14, 18}, {2, 6, 13, 17}, {3, 7, 12, 16}, {4, 8, 11, 15, 19, 20}]


def grouped(addresses: dict[str, str]) -> list[set[int]]:
    groups: dict[str, set[int]] = {}
    for host, address in addresses.items():
        groups.setdefault(address, set()).add(int(host.split(".")[0].removeprefix("hello")))
    return sorted(groups.values(), key=min)


async def test_the_walkthroughs_hosts_group_as_it_prints_and_move_without_a_lost_request(
    house: House,
) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "LARGE"))
    for i in range(1, 21):
        house.app(f"hello{i}", f"hello{i}.avi.iberia.local")
    await house.until(lambda: len(house.addresses()) == 20)
    assert grouped(house.addresses()) == sorted(LARGE, key=min)
    for host, address in house.addresses().items():
        await house.until_status(address, host, 200)

    answers: list[int] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            for host, address in house.addresses().items():
                answers.append(await house.get(address, host))

    task = asyncio.create_task(load())
    house.write("class.yaml", CLASS.replace("SIZE", "MEDIUM"))
    await house.until(lambda: grouped(house.addresses()) == sorted(MEDIUM, key=min))
    await asyncio.sleep(0.3)
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    await house.until(lambda: grouped(house.addresses()) == [set(range(1, 21))])
    await asyncio.sleep(0.3)
    done.set()
    await task
    assert len(answers) > 20  # each was asked
    assert set(answers) == {200}


async def test_hosts_match_whatever_their_case_and_wildcards_stand_for_one_label(
    house: House,
) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    house.app("exact", "a.w.test")
    house.app("wild", "*.w.test", "/only")
    await house.until(lambda: len(house.addresses()) == 2)
    vip = house.addresses()["a.w.test"]
    await house.until_status(vip, "a.w.test", 200)
    assert await house.get(vip, "A.W.Test") == 200
    assert await house.get(vip, "b.w.test", "/only/this") == 200
    assert await house.get(vip, "b.w.test", "/onlythat") == 404
    assert await house.get(vip, "c.b.w.test", "/only") == 404
    assert await house.get(vip, "elsewhere.test") == 404


async def test_a_broken_object_says_why_and_hurts_no_other(house: House) -> None:
    house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
    house.app("good", "good.test")
    house.app("bad", "Bad.test:80")
    await house.until(lambda: "good.test" in house.addresses())
    await house.until_status(house.addresses()["good.test"], "good.test", 200)
    refused = status.ingress_refusals(house.serve.reconciler, "default/bad")
    assert [(r.field, r.reason) for r in refused] == [("spec.rules[0].host", "InvalidHost")]
    house.write("good.yaml", "kind: [")
    await asyncio.sleep(0.3)
    assert await house.get(house.addresses()["good.test"], "good.test") == 200
    assert house.serve.ads.nacks == 0

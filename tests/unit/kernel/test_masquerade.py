"""The way beyond this machine: what nft is told, what is in the way, and whose tables are swept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from ipaddress import ip_network

import pytest

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.kernel import masquerade, scratch
from podmgr.proc import Completed
from tests.unit.samples import Script, said

NETWORKS = [ip_network("198.18.0.4/30"), ip_network("fd00:1::/64")]
GONE = "4194305-5"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes it a machine that forwards so and has nft, or not."""

    def make(*versions: int, has_nft: bool = True, interfaces: Sequence[str] = ()) -> None:
        monkeypatch.setattr(masquerade, "_forwards", lambda version: version in versions)
        monkeypatch.setattr(proc, "find", lambda _: "/usr/sbin/nft" if has_nft else None)
        monkeypatch.setattr(masquerade, "_interfaces", lambda: set(interfaces))
        monkeypatch.setattr(masquerade, "_VANISH_SECONDS", 0.03)

    return make


def listing(*chains: dict[str, str]) -> Script:
    rows = [{"metainfo": {"version": "1.0.6"}}, *({"chain": chain} for chain in chains)]
    return Script(said(json.dumps({"nftables": rows})))


def test_what_is_lacking_is_told(machine: Callable[..., None]) -> None:
    machine(4)
    assert masquerade.obstacle() == ""
    machine(6)
    assert masquerade.obstacle() == "it does not forward (net.ipv4.ip_forward is 0)"
    machine(has_nft=False)
    assert masquerade.obstacle().endswith(" and nft is not installed (package nftables)")


@pytest.mark.parametrize("versions", [(4,), (4, 6)])
def test_table_masquerades_what_is_forwarded(machine: Callable[..., None], versions: Sequence[int]) -> None:
    machine(*versions)
    script = Script(said(""))
    masquerade.add("podmgr-0123ab", NETWORKS, runner=script)
    assert script.calls == [("nft", "-f", "-")]
    lines = script.inputs[0].decode().splitlines()
    assert lines[:2] == ["table inet podmgr-0123ab {", f"chain of-{scratch.maker()} {{"]
    rules = ["ip saddr 198.18.0.4/30", "ip6 saddr fd00:1::/64"][: len(versions)]
    assert lines[3:-2] == [f'{rule} oifname != "podmgr-0123ab" masquerade' for rule in rules]


def test_refusal_is_told_in_nfts_words(machine: Callable[..., None]) -> None:
    machine(4)
    script = Script(said("", code=1, stderr="/dev/stdin:1:1-5: Error: Operation not supported\n..."))
    with pytest.raises(PodmgrError, match=r"^nft: /dev/stdin:1:1-5: Error: Operation not supported$"):
        masquerade.add("podmgr-0123ab", NETWORKS, runner=script)


@pytest.mark.parametrize(("policy", "is_closed"), [("drop", True), ("accept", False)])
def test_chain_that_drops_what_is_forwarded_is_found(policy: str, is_closed: bool) -> None:
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy}
    others = {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}
    found = masquerade.closed_chain(runner=listing(others, chain))
    assert found == ("nft list chain ip filter FORWARD" if is_closed else "")


def _chain(table: str, maker: str) -> dict[str, str]:
    return {"family": "inet", "table": table, "name": f"of-{maker}", "hook": "postrouting"}


def test_tables_whose_makers_and_interfaces_are_gone_are_swept(machine: Callable[..., None]) -> None:
    machine(4, interfaces=["podmgr-222222", "podmgr-333333", "lo"])
    chains = [
        _chain("podmgr-111111", GONE),
        _chain("podmgr-222222", GONE),  # of a maker in another PID namespace, or with processes left
        _chain("podmgr-333333", scratch.maker()),
        _chain("podmgr-444444", scratch.maker()),  # on its way out
        _chain("podmgr-of-others", GONE),
        {"family": "inet", "table": "podmgr-555555", "name": "out"},
    ]
    script = listing(*chains)
    assert masquerade.sweep(runner=script) == ["podmgr-111111"]
    assert b"".join(script.inputs) == b"add table inet podmgr-111111\ndelete table inet podmgr-111111\n"


def test_nothing_is_swept_where_nft_is_not_or_cannot(machine: Callable[..., None]) -> None:
    machine(has_nft=False)
    script = Script(said("", code=1))
    assert masquerade.sweep(runner=script) == []
    assert script.calls == []
    machine()
    assert masquerade.sweep(runner=script) == []


def test_table_that_cannot_be_removed_is_an_error_with_the_way_to_do_it() -> None:
    def refuse(_: Sequence[str], __: bytes) -> Completed:
        return said("", code=1, stderr="Error: busy")

    with pytest.raises(PodmgrError, match="cannot remove the nft table inet podmgr-0123ab") as caught:
        masquerade.remove("podmgr-0123ab", runner=Script(refuse))
    assert caught.value.tip == "nft delete table inet podmgr-0123ab"

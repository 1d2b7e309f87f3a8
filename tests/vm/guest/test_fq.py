"""An fq of others: used as it is if it holds what a delay needs, else refused by name; never changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, lab

DELAY = "delay=200ms egress"  # 1,667 packets, and so long


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as made:
        yield made


def _qdiscs(made: Lab) -> str:
    return made.sh(made.pod, "tc qdisc show dev eth0")


@pytest.mark.parametrize(
    ("options", "refusal", "remedy"),
    [
        ("limit 1000 flow_limit 5000", "limit 1000, of which 1667 are needed", "limit 1667"),
        ("", "flow_limit 100, of which 1667 are needed", "flow_limit 1667"),
        (
            "flow_limit 5000 horizon 100ms",
            "horizon 100ms, of which 200ms are needed",
            "horizon 200ms",
        ),
    ],
)
def test_one_with_less_is_refused_by_name_and_left(
    made: Lab, options: str, refusal: str, remedy: str
) -> None:
    """Until what the error says was done."""
    made.sh(made.pod, f"tc qdisc add dev eth0 root handle 7: fq {options}")
    try:
        before = _qdiscs(made)
        with pytest.raises(AssertionError, match=rf"that of eth0 has {refusal}") as caught, made.under(DELAY):
            pass
        advice = f"tc qdisc change dev eth0 root fq {remedy}"
        assert advice in str(caught.value)
        assert _qdiscs(made) == before
        made.sh(made.pod, advice)
        before = _qdiscs(made)
        with made.under(DELAY):
            assert before.strip() in _qdiscs(made)
        assert _qdiscs(made) == before
    finally:
        made.sh(made.pod, "tc qdisc del dev eth0 root")


def test_one_of_ours_from_an_older_release_is_enlarged_in_place(made: Lab) -> None:
    with made.under(DELAY):
        made.sh(made.pod, "tc qdisc change dev eth0 root handle 7ab0: fq flow_limit 100000 horizon 10s")
        made.podmgr("apply", made.target, "--rule", "delay=300ms egress")
        assert "limit 250000p flow_limit 250000p" in _qdiscs(made)
        assert "horizon 30s" in _qdiscs(made)

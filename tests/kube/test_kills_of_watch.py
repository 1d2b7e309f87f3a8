"""`podmgr watch` killed at random moments: after the next command, kernel and ledger agree.

Other commands are killed in `tests/kernel/test_kills.py`, which says how often.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from podmgr.reconcile import ledger
from tests.how_often import KILLS, seeded
from tests.kernel.agreement import disagreements
from tests.kernel.conftest import Cli
from tests.kube.cluster import Simulated
from tests.kube.watching import Watching

NEXT = (["list"], ["apply", "cgroup/nowhere", "--rule", "loss=uniform egress 1%"], ["clean"], ["watch"])

pytestmark = pytest.mark.timeout(300 + 60 * KILLS)


def test_after_a_kill_and_another_command_kernel_and_ledger_agree(
    simulated: Simulated, watching: Callable[..., Watching]
) -> None:
    """It is killed while it starts, or while it changes rules."""
    chance = seeded("watch")
    podmgr = Cli(simulated.settings)
    pods = [simulated.pod(f"web-{number}") for number in range(3)]

    wished: dict[str, dict[str, str]] = {}

    def wish() -> None:
        for pod in pods:
            rate, loss = chance.randrange(1, 100), chance.randrange(1, 100)
            texts = {"bandwidth": f"{rate} mbps", "loss": f"uniform egress {loss}%"}
            simulated.annotate("pods", pod.name, texts | {"bandwidth": f"{texts['bandwidth']} both"})
            rates = [f"bandwidth={texts['bandwidth']} {side}" for side in ("egress", "ingress")]
            wished[pod.name] = dict.fromkeys([*rates, f"loss={texts['loss']}"], "pod")

    def agree(last: str) -> None:
        with ledger.locked(simulated.settings.state_dir):  # a watch that is alive may be in a transaction
            on_interfaces = {id for pod in pods for id in pod.programs()}
            assert "\n".join(disagreements(simulated.settings, on_interfaces)) == "", last

    wish()
    begun = time.monotonic()
    watch = watching()
    seconds = time.monotonic() - begun
    for number in range(KILLS):
        is_new = number % 2 == 0
        if is_new:
            watch.kill()
            wish()
            watch = watching(waits=False)
        else:
            watch.is_in_order()
            wish()
        time.sleep(chance.uniform(seconds / 4, seconds) if is_new else chance.uniform(0, seconds / 2))
        watch.kill()
        command = chance.choice(NEXT)
        if command == ["watch"]:
            watch = watching()
            for pod in pods:
                simulated.settles(pod, wished[pod.name])
        else:
            podmgr(*command, code=None)
        agree(str(command))
        if command != ["watch"]:
            watch = watching(waits=False)
    watch.is_in_order()  # and ends as it should

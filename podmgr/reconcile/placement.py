"""Where a rule acts on one target: at which hook, and at tc on which interfaces.

Looks at the network of the target's processes, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from podmgr.attachment import Cgroup, Link, Target
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import cgroups, tc
from podmgr.kernel.netns import Namespaces
from podmgr.kernel.tc import Interface, TrafficControl
from podmgr.reconcile import qdiscs
from podmgr.reconcile.stacked import TUNNELS, that_see_sockets_once
from podmgr.rules.hooks import at_cgroup, chosen_hook, require_possible, without_fq
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import ANYWHERE, Direction, Hook, Rule

_BONDS = ("bond", "team")  # which pass on what their ports carry, as a whole
_NO_WAY_OUT = ("bridge", "dummy")
_TAPS = ("macvtap", "ipvtap")  # a virtual machine's
_MOST_LINKS = 64  # of a rule on one target: who may make interfaces shall hold up nobody with them


class Placement(NamedTuple):
    """A hook, and at tc the sides of interfaces. `is_scoped`: others use these interfaces too.

    `note` says why it is not where such a rule would otherwise act.
    """

    hook: Hook
    links: tuple[Link, ...] = ()
    is_scoped: bool = False
    note: str = ""


class _Network(NamedTuple):
    """The network of one target. No namespaces: nobody lives there yet."""

    namespaces: tuple[int, ...]
    is_scoped: bool
    starts_here: bool = False


class Networks:
    """Places rules. What was seen of a target or a namespace is not looked at again."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._networks: dict[int, _Network] = {}
        self._interfaces: dict[int, list[Interface]] = {}
        self._ends: dict[int, dict[tuple[int | None, int | None], Interface]] = {}

    def place(
        self,
        rule: Rule,
        cgroup: Cgroup,
        *,
        counts_loopback: bool,
        starts_here: bool = False,
        is_enforced: bool = False,
        hook: Hook | None = None,
    ) -> Placement:
        """Where the rule acts. `hook` is that of its program's section, where the program says it.

        `counts_loopback`: the target has no network namespace of its own. `starts_here`: what
        will live in the cgroup starts in our own. `is_enforced`: who lives there must not be able
        to move it from the cgroup hook to interfaces of his own.
        Raises PodmgrError where the rule cannot act as its options say, PermissionDeniedError
        where the target's network may not be looked at.
        """

        def network() -> _Network:
            return self._network(cgroup, counts_loopback, starts_here)

        try:
            if (hook or _default_hook(rule, network)) is Hook.CGROUP:
                plain = _at_cgroup(rule)
                amiss = "" if counts_loopback else self._seen_amiss(network)
                if not amiss:
                    return plain
                if hook is not None or is_enforced or not _may_move(rule):
                    return plain._replace(note=f"sees {amiss}")
                links = self._links(rule, network(), counts_loopback)
                return Placement(Hook.TC, links, network().is_scoped, f"would, at the cgroup's, see {amiss}")
            require_possible(rule, Hook.TC)
            return Placement(Hook.TC, self._links(rule, network(), counts_loopback), network().is_scoped)
        except _CannotBeHadError as error:
            if not _has_second_choice(rule):
                raise PodmgrError(f"'{rule}' {error.message}", tip=error.tip) from error
            return Placement(Hook.CGROUP, note=error.message)
        except PermissionDeniedError as error:
            if not _has_second_choice(rule):
                raise
            return Placement(Hook.CGROUP, note=f"would act on interfaces, but podmgr is {error.message}")

    def are_shared(self, target: Target) -> bool:
        """Whether the target's interfaces are also others'. Raises PermissionDeniedError, as `place` does."""
        return self._network(target.cgroup, target.counts_loopback, target.starts_here).is_scoped

    def _network(self, cgroup: Cgroup, counts_loopback: bool, starts_here: bool) -> _Network:
        if cgroup.id not in self._networks:
            self._networks[cgroup.id] = self._look(cgroup, counts_loopback, starts_here)
        return self._networks[cgroup.id]

    def without_fq(self, cgroup: Cgroup) -> dict[str, str]:
        """Interface to its root qdisc, for those that the cgroup's processes send through without fq.

        A cgroup without processes is taken to live in our own namespace.
        """
        lacking: dict[str, str] = {}
        for namespace in self._namespaces.of(cgroup) or [self._namespaces.own()]:
            lacking |= self._control(namespace).without_fq()
        return lacking

    def _look(self, cgroup: Cgroup, counts_loopback: bool, starts_here: bool) -> _Network:
        if not counts_loopback:  # a pod's network is that of its oldest process, the sandbox
            found = self._namespaces.of(cgroup, most=1)
            return _Network(tuple(found), any(map(self._namespaces.is_ours, found)))
        found = self._namespaces.of(cgroup)
        if starts_here and not found:
            found = [self._namespaces.own()]
        is_alone = len(found) == 1 and not self._namespaces.is_ours(found[0])
        is_scoped = not is_alone or self._namespaces.is_shared(found[0], cgroup)
        return _Network(tuple(found), is_scoped, starts_here)

    def _links(self, rule: Rule, network: _Network, counts_loopback: bool) -> tuple[Link, ...]:
        is_on_sending_side = template_of(rule).is_on_sending_side
        if network.is_scoped and rule.direction is Direction.INGRESS:
            raise _CannotBeHadError(
                "acts on its own interfaces alone: of what arrives on shared ones, tc does not know "
                "whose it is",
                _instead(rule) + (", or podmgr run --net" if network.starts_here else ""),
            )
        if not network.namespaces:
            raise _CannotBeHadError(
                "acts on interfaces, and which they are is not known before a process lives there",
                "apply again when it runs",
            )
        other = at_cgroup(rule) or without_fq(rule)
        if network.is_scoped and not cgroups.has_true_root():
            raise _CannotBeHadError(
                "needs the cgroup's level below the true root, which is not seen from here",
                "run podmgr outside of a cgroup namespace" + (f", or use {other}" if other else ""),
            )
        links: list[Link] = []
        for namespace in network.namespaces:
            chosen = self._chosen(rule, namespace, network.is_scoped, counts_loopback)
            if is_on_sending_side and rule.direction is Direction.INGRESS:
                links += [self._host_side(rule, item, namespace) for item in chosen]
            else:
                sides = tuple(Direction) if rule.watches_back else (rule.direction,)
                links += [Link(namespace, item.index, side, item.name) for item in chosen for side in sides]
        if len(links) > _MOST_LINKS:
            raise _CannotBeHadError(
                f"would act on {len(links)} sides of interfaces, {_MOST_LINKS} are the most",
                "name those that are meant with interface=",
            )
        return tuple(sorted(links))

    def _chosen(
        self, rule: Rule, namespace: int, is_scoped: bool, counts_loopback: bool
    ) -> Sequence[Interface]:
        """The interfaces of a namespace that the rule acts on."""
        there = self._all(namespace)
        if rule.place.interfaces:
            known = {item.name: item for item in there}
            for name in rule.place.interfaces:
                if name not in known:
                    raise _CannotBeHadError(
                        f"has no interface {name} to act on", f"there are: {', '.join(sorted(known))}"
                    )
            return [known[name] for name in rule.place.interfaces]
        if is_scoped:  # what a process sends passes the bridge or the bond itself
            up = [item for item in there if item.is_up and not item.is_port]
            if template_of(rule).needs_fq:
                up = self._that_have_fq(rule, namespace, up)
            return that_see_sockets_once(
                self._that_take_clsact(
                    rule, namespace, [item for item in up if counts_loopback or not item.is_loopback]
                )
            )
        found = self._that_lead_out(namespace)
        if not found:
            raise _CannotBeHadError("finds no interface that is up", "ip link shows them")
        return found

    def _that_lead_out(self, namespace: int) -> list[Interface]:
        """The interfaces through one of which each packet comes in or goes out, once.

        Ports of a bridge among them, since what it forwards does not pass the bridge itself, but
        not those that lead to namespaces below, such as containers that a pod has made: where one is
        proven to lead to the node, a veth that is not leads there.
        """
        there = self._all(namespace)
        up = {item.index: item for item in there if item.is_up and not item.is_loopback}
        outer = [item for item in up.values() if not item.is_port]
        proven: dict[int, Interface] = {}
        unproven: dict[int, Interface] = {}
        below: dict[int, Interface] = {}
        nodes = {
            item.peer_namespace_id
            for item in up.values()
            if item.kind == "veth" and self._node_side(item, namespace) is not None
        }
        for item in up.values():
            if item.peer_namespace_id is None and item.kind:
                continue
            top = item
            while (above := up.get(top.master_index or 0)) is not None and above.kind in _BONDS:
                top = above
            if item.kind != "veth" or item.peer_namespace_id in nodes:
                proven[top.index] = top
            else:
                (below if top.is_port else unproven)[top.index] = top
        if found := proven or unproven:
            return sorted(found.values())
        # Nobody can say: the way out is a device of this namespace alone, or its other side is out of sight.
        lowest = [item for item in outer if item.peer_index not in up]
        return [item for item in lowest if item.kind not in _NO_WAY_OUT] or sorted(below.values()) or lowest

    def _seen_amiss(self, network: Callable[[], _Network]) -> str:
        """What the socket layer does not see just once; "" if there is none, or it may not be looked."""
        try:
            if network().is_scoped:
                return ""
            for namespace in network().namespaces:
                leading = self._that_lead_out(namespace)
                forwards = [item.name for item in leading if item.is_port or item.kind in _TAPS]
                tunnels = [
                    item.name
                    for item in self._all(namespace)
                    if item.is_up and item.kind in TUNNELS and item not in leading
                ]
                if forwards:
                    return f"nothing of what passes {', '.join(forwards)} without a socket of the pod"
                if tunnels:
                    return f"what {', '.join(tunnels)} carries twice, or never if it is a virtual machine's"
        except PodmgrError:  # limits do without a look
            pass
        return ""

    def _that_take_clsact(
        self, rule: Rule, namespace: int, found: Sequence[Interface]
    ) -> Sequence[Interface]:
        """Without those that have the older ingress qdisc, beside which there is no clsact."""
        qdiscs = self._control(namespace).qdiscs()
        left = [
            item for item in found if not any(qdisc.kind == "ingress" for qdisc in qdiscs.get(item.index, ()))
        ]
        if not left:
            other = at_cgroup(rule) or without_fq(rule)
            tip = f"use {other}" if other else "tc qdisc show: the ingress qdisc stands in clsact's place"
            raise _CannotBeHadError("finds no interface that takes clsact", tip)
        return left

    def _that_have_fq(self, rule: Rule, namespace: int, found: Sequence[Interface]) -> list[Interface]:
        """Those of others that somebody has given an fq: all that default routes lead through must be."""
        control = self._control(namespace)
        if lacking := control.without_fq():
            raise qdiscs.not_root(lacking).of(rule)
        there = control.qdiscs()
        left = [item for item in found if tc.root_kind(there.get(item.index, ())) == qdiscs.FQ]
        if not left:
            raise _CannotBeHadError("finds no interface with fq to act on", "ip link, tc qdisc show")
        return left

    def _host_side(self, rule: Rule, item: Interface, namespace: int) -> Link:
        """The other end of a pod's veth, which leads to it from the node's namespace."""
        found = self._node_side(item, namespace)
        if found is None:
            raise _CannotBeHadError(
                f"acts on the node's side of a veth, and the other end of {item.name} is not there",
                _instead(rule),
            )
        return found

    def _node_side(self, item: Interface, namespace: int) -> Link | None:
        for node in self._namespaces.nodes():
            other = self._veths(node).get((item.peer_index, item.index))
            # The numbers alone could be another pod's, or made up by the pod itself.
            if other and other.peer_namespace_id == self._namespaces.id_of(namespace, node):
                return Link(node, other.index, Direction.EGRESS, other.name)
        return None

    def _veths(self, node: int) -> dict[tuple[int | None, int | None], Interface]:
        """Those that lead to other namespaces, by both ends: a pod may have thousands to look for."""
        if node not in self._ends:
            self._ends[node] = {
                (item.index, item.peer_index): item
                for item in self._all(node)
                if item.kind == "veth" and item.peer_namespace_id is not None
            }
        return self._ends[node]

    def _all(self, namespace: int) -> list[Interface]:
        if namespace not in self._interfaces:
            self._interfaces[namespace] = self._control(namespace).interfaces()
        return self._interfaces[namespace]

    def _control(self, namespace: int) -> TrafficControl:
        control = self._namespaces.traffic_control(namespace)
        if control is None:
            raise PodmgrError("the pod's network namespace has vanished", tip="apply again when it is back")
        return control


class _CannotBeHadError(PodmgrError):
    """The rule cannot act at tc. The message goes on after the rule."""

    def __init__(self, message: str, tip: str) -> None:
        super().__init__(message, tip=tip)


def _instead(rule: Rule) -> str:
    """What to do about a rule for what arrives, where it cannot be had."""
    if at_cgroup(rule):
        return "use the cgroup hook"
    other = without_fq(rule)
    return f"limit ingress with {other}" if other else f"use {rule.key} on egress, where it can be had"


def _default_hook(rule: Rule, network: Callable[[], _Network]) -> Hook:
    """The hook of a rule that is not said by its program. Looks at the network only if it matters."""
    choices = [chosen_hook(rule, is_shared=is_shared) for is_shared in (False, True)]
    own, shared = (choice[0] if choice else Hook.CGROUP for choice in choices)
    return own if own is shared or not network().is_scoped else shared


def _has_second_choice(rule: Rule) -> bool:
    """Whether the cgroup hook will do, though not as well: only if nobody asked for another place."""
    return rule.place == ANYWHERE and template_of(rule).second_choice is Hook.CGROUP and not rule.needs_tc


def _may_move(rule: Rule) -> bool:
    """Whether the interfaces will do as well: only if nobody asked for another place."""
    return rule.place == ANYWHERE and template_of(rule).second_choice is Hook.TC


def _at_cgroup(rule: Rule) -> Placement:
    require_possible(rule, Hook.CGROUP)
    return Placement(Hook.CGROUP)

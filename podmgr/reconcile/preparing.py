"""Compiling before a transaction, so that nobody waits for a compiler while the ledger is locked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from podmgr import proc
from podmgr.attachment import Link, Wish
from podmgr.errors import PodmgrError
from podmgr.kernel.netns import Namespaces
from podmgr.proc import Each, Runner
from podmgr.programs.build import Made, NotCompiledError, SpecMaker, Specs, compile_all, store_all
from podmgr.programs.store import ObjectStore, StoredObject
from podmgr.reconcile.actual import recorded
from podmgr.reconcile.decided import Decided
from podmgr.reconcile.desired import Desired, Desiring
from podmgr.reconcile.placement import Networks
from podmgr.rules.rule import Rule
from podmgr.settings import Settings


class Prepared(NamedTuple):
    """What a transaction need not do: the specs and objects of its programs, or why there are none.

    What it lacks all the same, as the machine has changed since, it makes itself for these owners; the
    targets of others fail with NotCompiledError.
    """

    specs: Specs = MappingProxyType({})
    made: Mapping[str, Made] = MappingProxyType({})
    owners: frozenset[str] = frozenset()

    def __or__(self, other: Prepared) -> Prepared:
        return Prepared(
            {**self.specs, **other.specs}, {**self.made, **other.made}, self.owners | other.owners
        )


NOTHING = Prepared()


class _Expected(Networks):
    """Networks that are not there yet: a rule that acts on interfaces will find some."""

    def _links(self, rule: Rule, network: object, counts_loopback: bool) -> tuple[Link, ...]:  # noqa: ARG002
        return ()


def prepare(
    wishes: Sequence[Wish],
    settings: Settings,
    *,
    runner: Runner,
    each: Each = proc.each,
    before: Prepared = NOTHING,
    with_custom: bool = True,
    is_ahead: bool = False,
) -> Prepared:
    """Compile what is not in the store. Touches nothing, and needs no lock.

    `before` has what is known already. Without the custom programs it is of no owner. `is_ahead`: the
    networks are not there yet, and are taken to be the pods' own.
    """
    owners = frozenset(wish.target.owner for wish in wishes)
    maker = SpecMaker(settings, runner=runner, known=before.specs)
    decided = Decided(wishes)
    with Namespaces() as namespaces:
        networks = (_Expected if is_ahead else Networks)(namespaces.knowing(decided.networks))
        desiring = Desiring(settings, networks, decided, maker, may_compile=lambda _: with_custom)
        desired = desiring.desired(recorded(settings))
    digests = {row.object_digest for row in decided.alive(desired.rows)} - before.made.keys()
    made = compile_all(
        [desired.specs[digest] for digest in digests],
        ObjectStore(settings.state_dir),
        runner=runner,
        max_map_bytes=settings.max_map_bytes,
        each=each,
    )
    return before | Prepared(maker.known, made, owners if with_custom else frozenset())


def objects_of(
    desired: Desired,
    decided: Decided,
    prepared: Prepared,
    store: ObjectStore,
    *,
    settings: Settings,
    runner: Runner,
) -> dict[str, StoredObject]:
    """The objects of a transaction, by digest, stored where they are not; targets that lack one fail."""
    rows = decided.alive(desired.rows)
    lacking = {row.object_digest for row in rows if row.owner in prepared.owners} - prepared.made.keys()
    made = compile_all(
        [desired.specs[digest] for digest in lacking],
        store,
        runner=runner,
        max_map_bytes=settings.max_map_bytes,
    )
    specs = [desired.specs[row.object_digest] for row in rows]
    results = store_all(specs, store, {**prepared.made, **made})
    for row in rows:
        match results[row.object_digest]:
            case NotCompiledError() as error:  # all of its rules wait together
                decided.fail(row.cgroup_id, None, error)
            case PodmgrError() as error:
                decided.fail(row.cgroup_id, row.rule, error)
    return {digest: found for digest, found in results.items() if isinstance(found, StoredObject)}

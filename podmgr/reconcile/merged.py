"""All rules that hold on one target: those that it is wished, and those there that stay beside or above them.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from podmgr.attachment import Attachment, Wish
from podmgr.reconcile.chain import is_enforced
from podmgr.rules.hooks import chosen_hook
from podmgr.rules.rule import Hook, Rule
from podmgr.rules.source import CLI, Layer, SourcedRule


def merged(wish: Wish, present: Iterable[Attachment]) -> list[SourcedRule]:
    """The wish's rules, and those on the target that stay beside or above them.

    Only a standing wish leaves there what the command line put.
    """
    rules = list(wish.rules)
    for row in present:
        rule = row.rule
        if rule is None:
            continue
        is_to_stay = row.source == CLI and wish.is_standing
        is_unseen = row.source.layer in wish.unseen
        if not is_to_stay and not is_unseen and (row.source, rule.key) not in wish.unreadable:
            continue
        may_be_enforced = is_unseen and row.source.layer is Layer.NAMESPACE and is_enforced(row)
        if row.source in wish.enforcing or may_be_enforced:
            rules = [item for item in rules if item.rule != rule]
            rules.append(SourcedRule(rule, row.source, is_enforced=True))
            continue
        key = rule.collision_key
        rivals = [item for item in rules if item.rule.collision_key == key and not item.is_enforced]
        is_there = any(item.rule == rule and item.is_enforced for item in rules)
        if is_there or any(rival.source.strength > row.source.strength for rival in rivals):
            continue
        rules = [item for item in rules if item not in rivals] + [SourcedRule(rule, row.source)]
    return rules


def forms(rule: Rule) -> list[Rule]:
    """The rule, and what stands for it where only what leaves can be delayed."""
    whole = rule.on_egress_alone
    return [rule] if whole in (rule, None) else [rule, whole]


def is_for_later(wish: Wish, rule: Rule) -> bool:
    """Whether it acts on interfaces, and nobody lives there yet whose they are."""
    choice = chosen_hook(rule, is_shared=wish.target.counts_loopback) if wish.is_early else None
    return choice is not None and choice[0] is Hook.TC

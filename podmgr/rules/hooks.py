"""At which hook a rule acts, as far as it and its kind say. Where it does, `reconcile.placement` finds."""

from __future__ import annotations

from podmgr.errors import PodmgrError
from podmgr.rules.kinds import template_of
from podmgr.rules.rule import Direction, Hook, Rule


def chosen_hook(rule: Rule, *, is_shared: bool) -> tuple[Hook, str] | None:
    """The hook of a rule, and why; None for a program whose ELF section says it.

    `is_shared`: the target's interfaces are also others'.
    """
    default = template_of(rule).hooks.get(rule.direction)
    if default is None:
        return None
    if rule.place.hook is not None:
        return rule.place.hook, "hook= says so"
    if rule.place.interfaces:
        return Hook.TC, "interface= says so"
    return default.shared if is_shared else default.own, default.reason


def require_possible(rule: Rule, hook: Hook) -> None:
    """Raise PodmgrError for a rule that can act at this hook of no target."""
    if hook is not Hook.CGROUP:
        if rule.match.containers and rule.direction is Direction.INGRESS:
            raise PodmgrError(
                f"'{rule}': at tc nobody knows yet which container a packet that arrives is for",
                tip=f"{at_cgroup(rule)} knows" if at_cgroup(rule) else "container= on egress",
            )
        return
    if rule.place.interfaces:
        raise PodmgrError(
            f"'{rule}' is for the cgroup hook, which knows no interfaces",
            tip='leave interface= out, or use SEC("tc")',
        )
    if rule.needs_tc:
        raise PodmgrError(f"'{rule}' cannot act at the cgroup hook: {rule.needs_tc}", tip="hook=tc can")
    if template_of(rule).needs_fq and rule.direction is Direction.INGRESS:
        raise PodmgrError(
            f"'{rule}' cannot delay what arrives: the cgroup hook has no departure times on ingress",
            tip=f"limit ingress with {without_fq(rule)}" if rule.without_fq else "hook=tc can",
        )


def without_fq(rule: Rule) -> str:
    """What to write for a rule that does the like and needs no fq; "" if nothing does."""
    return rule.without_fq.replace("DIRECTION", rule.direction)


def at_cgroup(rule: Rule) -> str:
    """What to write for the same at the cgroup hook; "" if it cannot be had."""
    if rule.needs_tc:
        return ""
    needs_fq = template_of(rule).needs_fq
    if needs_fq and (rule.brings_program or rule.direction is Direction.INGRESS):
        return ""
    return rule.at_cgroup

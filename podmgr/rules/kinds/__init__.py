"""The kinds of rule: each is a file here, and a line in the list below.

Nothing else names one, but for the demo, which measures them.
"""

from __future__ import annotations

from podmgr.rules.kinds import bandwidth, block, corrupt, custom, delay, duplicate, loss, profile, reorder
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.rule import Rule, Stage, Template

KINDS: tuple[Kind, ...] = (
    bandwidth.KIND,
    delay.KIND,
    loss.KIND,
    duplicate.KIND,
    corrupt.KIND,
    reorder.KIND,
    block.KIND,
    profile.KIND,
    custom.KIND,
)

BY_KEY = {kind.key: kind for kind in KINDS}
_TEMPLATES = {template.name: template for kind in KINDS for template in kind.templates}
BUILT_IN_PROGRAMS = frozenset(_TEMPLATES)


def template_of(rule: Rule) -> Template:
    """What podmgr knows of the rule's program; of one that the user brings, its stage alone.

    What only counts holds no packet, but stands where it would if it did.
    """
    template = _TEMPLATES.get(rule.program) or Template(rule.program, Stage.CUSTOM)
    if rule.is_shadow:
        return template._replace(needs_fq=False, frees=False, sends=template.is_on_sending_side)
    return template

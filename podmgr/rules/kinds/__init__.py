"""The kinds of rule: each is a file here, and a line in the list below.

Nothing else names one, but for the demo, which measures them.
"""

from __future__ import annotations

from podmgr.rules.kinds import bandwidth, corrupt, custom, delay, duplicate, loss, profile, reorder
from podmgr.rules.kinds.kind import Kind
from podmgr.rules.rule import Rule, Stage, Template

KINDS: tuple[Kind, ...] = (
    bandwidth.KIND,
    delay.KIND,
    loss.KIND,
    duplicate.KIND,
    corrupt.KIND,
    reorder.KIND,
    profile.KIND,
    custom.KIND,
)

BY_KEY = {kind.key: kind for kind in KINDS}
_TEMPLATES = {template.name: template for kind in KINDS for template in kind.templates}
BUILT_IN_PROGRAMS = frozenset(_TEMPLATES)


def template_of(rule: Rule) -> Template:
    """What podmgr knows of the rule's program; of one that the user brings, its stage alone."""
    return _TEMPLATES.get(rule.program) or Template(rule.program, Stage.CUSTOM)

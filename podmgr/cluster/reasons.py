"""What podmgr's Events are called: who posts them, and for which reasons.

`watch.events` has their wording, `told` reads them again.
"""

from __future__ import annotations

COMPONENT = "podmgr"

APPLIED, REMOVED, OVER = "RuleApplied", "RuleRemoved", "RuleOver"
FAILED, BYPASSED = "RuleFailed", "RuleBypassed"

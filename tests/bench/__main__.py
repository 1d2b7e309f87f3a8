"""`make bench`: prints each figure beside its limit; exit code 1 if one is not met."""

from __future__ import annotations

import sys

from tests.bench import control, watching


def main() -> int:
    figures = control.measure()
    print(
        f"{'WHAT':24}{'MEDIAN':>10}{'MIN':>10}{'MAX':>10}{'LIMIT':>10}   ({control.ROUNDS} rounds, seconds)"
    )
    for figure in figures:
        limit = f"{figure.limit:.2f}" if figure.limit is not None else "-"
        verdict = "" if figure.is_met else "   too slow"
        spread = f"{min(figure.seconds):>10.3f}{max(figure.seconds):>10.3f}"
        print(f"{figure.name:24}{figure.median:>10.3f}{spread}{limit:>10}{verdict}", flush=True)
    results = watching.measure()
    print(f"\n{'WATCH':54}{'RESULT':>14}{'GOAL':>10}")
    for result in results:
        goal = f"{result.goal:g}" if result.goal is not None else "-"
        verdict = "" if result.is_met else "   missed"
        print(f"{result.name:54}{result.value:>10.2f} {result.unit:3}{goal:>10}{verdict}")
    return 0 if all(figure.is_met for figure in figures) and all(result.is_met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())

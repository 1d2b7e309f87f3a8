"""`make bench`: prints each figure beside its limit; exit code 1 if one is not met."""

from __future__ import annotations

import sys

from tests.bench.control import ROUNDS, measure


def main() -> int:
    figures = measure()
    print(f"{'WHAT':24}{'MEDIAN':>10}{'MIN':>10}{'MAX':>10}{'LIMIT':>10}   ({ROUNDS} rounds, seconds)")
    for figure in figures:
        limit = f"{figure.limit:.2f}" if figure.limit is not None else "-"
        verdict = "" if figure.is_met else "   too slow"
        spread = f"{min(figure.seconds):>10.3f}{max(figure.seconds):>10.3f}"
        print(f"{figure.name:24}{figure.median:>10.3f}{spread}{limit:>10}{verdict}")
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

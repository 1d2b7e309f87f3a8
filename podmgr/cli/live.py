"""The list again and again, with rates: what `podmgr list --watch` does.

Apart from the command, which alone uses it: to show a list once takes none of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from podmgr.cli.render import Format, attachments_document, columns, document
from podmgr.errors import printable
from podmgr.reconcile.observe import Observed, observe
from podmgr.settings import Settings

INTERVAL_SECONDS = 1.0


def watch(settings: Settings, form: Format) -> None:
    """Print until interrupted: on a terminal in place, else one list (or JSON line) a second."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    before: Sequence[Observed] = observe(settings)[0]
    then = time.monotonic()
    if form in (Format.JSON, Format.YAML) or not sys.stdout.isatty():
        while True:
            time.sleep(INTERVAL_SECONDS)
            now, then_ = observe(settings)[0], time.monotonic()
            _print(before, now, then_ - then, form)
            before, then = now, then_
    with Live(Text("..."), console=Console(), screen=False, auto_refresh=False) as display:
        while True:
            time.sleep(INTERVAL_SECONDS)
            now, then_ = observe(settings)[0], time.monotonic()
            display.update(Text(_table(before, now, then_ - then), no_wrap=True), refresh=True)
            before, then = now, then_


def _print(before: Sequence[Observed], now: Sequence[Observed], seconds: float, form: Format) -> None:
    if form is Format.JSON:
        text = json.dumps(attachments_document(now)) + "\n"
    elif form is Format.YAML:
        text = "---\n" + document(attachments_document(now), form)
    else:
        text = _table(before, now, seconds)
    sys.stdout.write(text)
    sys.stdout.flush()


def _table(before: Sequence[Observed], now: Sequence[Observed], seconds: float) -> str:
    old = {item.attachment.identity: item for item in before}
    rows = [["TARGET", "RULE", "STATE", "PASSED/s", "MBIT/s", "DROPPED/s", "PASSED", "DROPPED"]]
    for item in now:
        row, counters = item.attachment, item.counters
        previous = old.get(row.identity)
        cells = [row.target, str(row.rule), item.state]
        if counters is None or previous is None or previous.counters is None:
            cells += ["-"] * 5
        else:
            was = previous.counters
            cells += [
                f"{(counters.passed_packets - was.passed_packets) / seconds:,.0f}",
                f"{(counters.passed_bytes - was.passed_bytes) * 8 / seconds / 1e6:,.3f}",
                f"{(counters.dropped_packets - was.dropped_packets) / seconds:,.0f}",
                str(counters.passed_packets),
                str(counters.dropped_packets),
            ]
        rows.append([printable(cell) for cell in cells])
    return columns(rows)

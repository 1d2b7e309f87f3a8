"""`podmgr`, and `python -m podmgr`."""

import gc

gc.disable()  # most commands end before it finds anything: a tenth of their time; see `this_process.goes_on`

from podmgr.cli.main import main  # noqa: E402  importing is most of what it would look through

if __name__ == "__main__":
    main()

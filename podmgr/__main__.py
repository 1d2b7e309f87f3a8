"""`python -m podmgr` is `podmgr`."""

from podmgr.cli import main

if __name__ == "__main__":
    main()

"""One module for each command: what it may be asked, in what order things are done, what it prints.

`main` alone loads them, by name: one of them, or for --help all. So they import what they need
when they run.
"""

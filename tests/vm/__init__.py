"""Virtual machines: what needs another kernel than the one the tests stand on."""

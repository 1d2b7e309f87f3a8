"""Tests that only a virtual machine can run: its kernel has fq and netem."""

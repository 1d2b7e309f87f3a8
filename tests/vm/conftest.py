"""Each side collects its own: the host what starts machines, a machine what only it can do."""

from __future__ import annotations

import os

from tests.vm.machine import KERNEL_VARIABLE

collect_ignore = ["test_vm.py", "test_image.py"] if KERNEL_VARIABLE in os.environ else ["guest"]

"""A part of a kubeconfig: its words, lists and files, and errors that say where they stand.

What they mean is for those who read it to know: `kubeconfig`, `credentials` and `exec_plugin`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from podmgr.cluster import documents
from podmgr.cluster.connection import TIP
from podmgr.errors import PodmgrError, printable


class Section(NamedTuple):
    """A cluster, a user, a context or a part of one; names of files in it are seen from `folder`, its file's.

    `kubeconfig`: all the files, as an error names them.
    """

    content: Mapping[str, Any]
    folder: Path
    kubeconfig: str

    def part(self, content: Mapping[str, Any]) -> Section:
        """What stands within it."""
        return self._replace(content=content)

    def word(self, name: str) -> str:
        """A text; numbers are taken for one, and what is anything else is not there."""
        value = self.content.get(name)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def list(self, name: str) -> Sequence[Any]:
        return listed(self.content.get(name))

    def data(self, name: str) -> bytes | None:
        """What stands in `name-data`, in base64, or in the file `name`."""
        if data := self.word(f"{name}-data"):
            try:
                return base64.b64decode(data, validate=False)
            except (binascii.Error, ValueError) as error:
                raise self.error(f"its {name}-data is not base64") from error
        return self.read(path) if (path := self.word(name)) else None

    def read(self, path: str) -> bytes:
        """What stands in a file that it names."""
        try:
            content = content_of(self.folder / path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no name of a file"
            raise self.error(f"{printable(path)}: {reason}") from error
        if len(content) > documents.MAX_BYTES:
            raise self.error(f"{printable(path)} is larger than {documents.MAX_BYTES >> 20} MiB")
        return content

    def error(self, problem: str, tip: str = TIP) -> PodmgrError:
        return unusable(self.kubeconfig, problem, tip)


def unusable(kubeconfig: str, problem: str, tip: str = TIP) -> PodmgrError:
    """The error for what is wrong with a kubeconfig."""
    return PodmgrError(f"kubeconfig {kubeconfig[:200]}: {problem}", tip=tip)


def listed(value: object) -> Sequence[Any]:
    """A list; what is anything else is an empty one."""
    return value if isinstance(value, list) else ()


def content_of(path: Path) -> bytes:
    """What stands in a file; of one without end, enough to say so. Raises OSError and ValueError."""
    with path.open("rb") as file:
        return file.read(documents.MAX_BYTES + 1)

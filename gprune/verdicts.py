"""Verdicts of the proofs of untested versions, in the user's cache directory.

Each verdict is a file of its own, so that processes that prove at the same time do not overwrite
each other's; a file is replaced as a whole, so that none is ever read half written.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

# Changes when fields do, so that verdicts of another form are proven again.
SCHEMA = 1


@dataclass(frozen=True)
class VerdictKey:
    """What a verdict is about: a family, and the versions that its proof ran on.

    Attributes:
        family: a name of `gprune.families()`.
        gprune: version.
        transformers: version.
        torch: version, with its build, such as ``2.13.0+cpu``.
    """

    family: str
    gprune: str
    transformers: str
    torch: str

    @property
    def path(self) -> Path:
        """The file of the verdict."""
        name = "-".join(f"{field}-{value}" for field, value in asdict(self).items())
        return folder() / (re.sub(r"[^\w.+-]", "_", name.removeprefix("family-")) + ".json")


@dataclass(frozen=True)
class StoredVerdict:
    """What the proof of a family found with some versions.

    Attributes:
        key: the family and the versions.
        passed: whether every line of the proof passed.
        failures: what failed.
        when: the time it ended, ISO 8601 with time zone.
        seconds: how long it took.
    """

    key: VerdictKey
    passed: bool
    failures: tuple[str, ...]
    when: str
    seconds: float


def folder() -> Path:
    """Returns the folder of verdicts, in the user's cache directory; it need not exist."""
    import platformdirs  # here: tested versions need no verdict

    return platformdirs.user_cache_path("gprune", appauthor=False) / "proofs"


def parse(text: str) -> StoredVerdict:
    """Returns the verdict that JSON text holds.

    Raises:
        ValueError: the text is no JSON, or no verdict.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise ValueError(f"no verdict of schema {SCHEMA}")
    key = data.pop("key", None)
    if not isinstance(key, dict) or not all(isinstance(one, str) for one in key.values()):
        raise ValueError("key must have strings")
    kinds = {"passed": bool, "failures": list, "when": str, "seconds": float}
    if {name: type(value) for name, value in data.items()} != kinds:
        raise ValueError(f"a verdict has {', '.join(kinds)}")
    if set(key) != {field.name for field in fields(VerdictKey)}:
        raise ValueError("key must have a family and its versions")
    if not all(isinstance(one, str) for one in data["failures"]):
        raise ValueError("failures must be strings")
    if data["passed"] == bool(data["failures"]):
        raise ValueError("a verdict has failures unless it passed")
    datetime.fromisoformat(data["when"])  # raises ValueError too
    return StoredVerdict(VerdictKey(**key), **{**data, "failures": tuple(data["failures"])})


def read(key: VerdictKey) -> StoredVerdict | None:
    """Returns the stored verdict of a key; None if there is none, or it cannot be read."""
    try:
        verdict = parse(key.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return verdict if verdict.key == key else None


def store(verdict: StoredVerdict) -> Path:
    """Stores a verdict, in place of an older one of the same key; returns its file.

    Raises:
        OSError: the cache directory cannot be written.
    """
    path = verdict.key.path
    path.parent.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"schema": SCHEMA, **asdict(verdict)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def stored() -> tuple[list[StoredVerdict], list[Path]]:
    """Returns all stored verdicts, by file name, and the files that hold none."""
    verdicts, unreadable = [], []
    for path in sorted(folder().glob("*.json")):
        try:
            verdicts.append(parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            unreadable.append(path)
    return verdicts, unreadable

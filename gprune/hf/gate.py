"""The gate: untested versions of transformers and torch have to prove themselves.

Outside the tested range, the proof of the family in use runs once on a tiny random model, in
seconds, and its verdict is stored (`gprune.verdicts`). Versions that fail are refused with what
failed.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from gprune import __version__, verdicts, versions
from gprune.errors import UnsupportedVersionError
from gprune.verdicts import StoredVerdict, VerdictKey

# What pruning a model depends on; each a key of `gprune.versions.RANGES`.
PACKAGES = ("transformers", "torch")
# From `warn` to the user's ``with``: `require_proven`, `gprune.hf.prune`, `contextlib`.
USERS_FRAME = 5

_proving: ContextVar[bool] = ContextVar("_proving", default=False)
# One proof at a time: threads that prune the same family wait for its verdict.
_lock = threading.Lock()
# Verdicts of this process, also those that could not be stored.
_verdicts: dict[VerdictKey, StoredVerdict] = {}


@contextmanager
def proving() -> Iterator[None]:
    """Opens the gate for the code inside, which is itself the proof.

    Threads that it starts have to run in a copy of its context (`contextvars.copy_context`).
    """
    token = _proving.set(True)
    try:
        yield
    finally:
        _proving.reset(token)


def require_proven(family: str, untested: str | None = None) -> None:
    """Checks that a family can be trusted with the installed versions.

    In the tested range it can. Outside, see ``untested``; there, one line of warning or an error
    tells what was decided.

    Args:
        family: its name.
        untested: ``prove`` runs the proof of the family, or takes its stored verdict; ``refuse``
            and ``allow`` run nothing. None takes what the environment variables of the untested
            packages say (`gprune.versions.RANGES`), of which ``refuse`` comes first, then
            ``prove``; that is also the default.

    Raises:
        UnsupportedVersionError: the proof failed or could not run, or ``untested`` is ``refuse``.
        ValueError: ``untested``, or the environment variable, is none of the three.
    """
    policies = {package: versions.policy(package, untested) for package in PACKAGES}
    installed = {package: versions.installed_version(package) for package in PACKAGES}
    others = [one for one in PACKAGES if not versions.is_tested(one, installed[one])]
    if not others or _proving.get():
        return
    named = " and ".join(f"{package} {installed[package]}" for package in others)
    found = f"{named} {'has' if len(others) == 1 else 'have'} not been tested with gprune"
    chosen = {policies[package] for package in others}
    if versions.REFUSE in chosen:
        raise UnsupportedVersionError(
            f"{found}, and {setting(others, untested)} refuses that: {pip_install(others)}, or "
            "pass untested='prove' to let it prove itself"
        )
    if versions.PROVE not in chosen:
        warn(f"{found}, and nothing was proven, because of {setting(others, untested)}")
        return
    verdict, when = verdict_of(VerdictKey(family, __version__, *installed.values()), found)
    if not verdict.passed:
        raise UnsupportedVersionError(
            f"{found}, and the proof of {family} failed: {'; '.join(verdict.failures)}. Instead, "
            f"{pip_install(others)}; to prove it again, delete {verdict.key.path}"
        )
    warn(f"{found}; the proof of {family} passed {when}")


def warn(line: str) -> None:
    """Warns in one line, at the user's ``with`` statement."""
    warnings.warn(line, UserWarning, stacklevel=USERS_FRAME)


def setting(packages: Sequence[str], untested: str | None) -> str:
    """Names what decided about untested packages: the argument, or environment variables."""
    if untested is not None:
        return f"untested={untested!r}"
    return " and ".join(
        f"{versions.RANGES[package].override}={versions.policy(package)}" for package in packages
    )


def pip_install(packages: Sequence[str]) -> str:
    """Returns how to install tested versions of packages."""
    wanted = " ".join(f"'{one}{versions.RANGES[one].requirement}'" for one in packages)
    return f"run pip install {wanted}"


def verdict_of(key: VerdictKey, found: str) -> tuple[StoredVerdict, str]:
    """Returns the verdict on a family and some versions, and when it was found.

    Runs the proof if no verdict is stored, and stores its verdict.

    Args:
        key: the family and the installed versions.
        found: names what has not been tested, for errors.

    Raises:
        UnsupportedVersionError: the proof could not run.
    """
    with _lock:
        verdict = _verdicts.get(key) or verdicts.read(key)
        if verdict is not None:
            _verdicts[key] = verdict
            return verdict, f"on {verdict.when[:10]}"
        verdict = _verdicts[key] = run_proof(key, found)
        when = f"now, in {verdict.seconds:.1f} s"
        try:
            verdicts.store(verdict)
        except OSError as error:
            when += f"; the next process proves it again, because it cannot be stored ({error})"
        return verdict, when


def run_proof(key: VerdictKey, found: str) -> StoredVerdict:
    """Runs the short proof of a family.

    Raises:
        UnsupportedVersionError: it could not run. That is no verdict: the reason may pass.
    """
    # A higher room: the proof prunes models. Imported only where an untested version asks for it.
    from gprune.proof import prove_family

    start = time.perf_counter()
    try:
        with proving():
            proof = prove_family(key.family)
    except Exception as error:
        raise UnsupportedVersionError(
            f"{found}, and the proof of {key.family} could not run: "
            f"{type(error).__name__}: {error}. Instead, {pip_install(PACKAGES)}"
        ) from error
    failures = () if proof.passed else tuple(proof.failures) or ("it does not say what",)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return StoredVerdict(key, proof.passed, failures, when, time.perf_counter() - start)

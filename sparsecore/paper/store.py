"""The one way to get a result: read the file if it is valid, else compute and keep it.

A result of profile "paper" is valid for its configuration, data and recipe, whatever code and
machine it came from. A result of profile "quick" is a cache for these sources and this machine.
"""

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparsecore import files
from sparsecore.cluster import ClusterError
from sparsecore.config import names
from sparsecore.datasets import DataError
from sparsecore.experiment import RECIPE
from sparsecore.limits import cpu_count
from sparsecore.progress import bar
from sparsecore.provenance import busy_cpus, cpu_model, installed, provenance, sources_sha256
from sparsecore.wasap import record

Result = dict[str, Any]
#: Takes the place of a missing result, and says why it is missing.
NOTHING: Result = {"missing": "This is not recorded yet, or it cannot be measured here."}

FORMAT_VERSION = 4
FOLDER = "SPARSECORE_RESULTS"
PROFILE = "SPARSECORE_PROFILE"
PROFILES = ("quick", "paper")
NOT_AVAILABLE = "not available on this machine"
# What a quick measurement depends on besides this package: one of the peers may be new.
_TIMED = "numpy", "numba", "scikit-learn", "torch", "jax", "sparselab", "sparseprop"


class ResultError(ValueError):
    """A file that is not a complete result."""


class ResultWarning(UserWarning):
    """A result file was ignored, or could not be written; the message says why."""


def root() -> Path:
    """Return the folder of all results: as set, or the book's, or one in the working directory."""
    if (own := files.named_folder(FOLDER)) is not None:
        return own
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "book" / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder / "book" / "results"
    return here / "results"


def current_profile(profile: str | None = None) -> str:
    """Return `profile`, else ``$SPARSECORE_PROFILE``, else "quick"; raise ValueError for others."""
    chosen = profile or os.environ.get(PROFILE) or "quick"
    return str(names(PROFILES).check("profile" if profile else f"${PROFILE}", chosen))


@dataclass(frozen=True)
class Entry:
    """One result of a study: where it is kept, and what it must agree with."""

    study: str
    name: str
    profile: str
    # The values of a valid result, by dotted name; called only if there is a file.
    expected: Callable[[], Mapping[str, Any]] = dict

    @property
    def path(self) -> Path:
        """The file."""
        return root() / self.profile / self.study / f"{self.name}.json"

    def checkpoint(self, key: str) -> Path:
        """Return a file for the state of a long computation; a result removes it."""
        # `key` tells the states of other configurations and machines apart.
        return self.path.with_name(f".{self.name}.{key}.checkpoint")

    def look(self) -> tuple[Result | None, str]:
        """Return the result, if valid, and "recorded", or None and why not; compute nothing."""
        try:
            result = read(self.path)
        except FileNotFoundError:
            return None, "missing"
        except (ResultError, OSError) as error:
            return None, f"damaged: {error}"
        own = {"study": self.study, "name": self.name, "profile": self.profile}
        if own != {key: result.get(key) for key in own}:
            return None, f"damaged: the result of another run, {result.get('name')}"
        if (recipe := result.get("recipe")) != RECIPE:
            return None, f"other recipe: was {recipe}, is now {RECIPE}"
        for name, value in self.expected().items():
            if (was := record.entry(result, name, object)) != value:
                return None, f"other configuration: {name} was {was!r:.60}, is now {value!r:.60}"
        if self.profile == "quick" and result.get("cache") != _cache_key():
            return None, "other code or machine"
        return result, "recorded"

    def recorded(self, otherwise: str = "it is ignored", level: int = 3) -> Result | None:
        """Return the result, if it is valid; warn of a file that is damaged."""
        result, state = self.look()
        if state.startswith("damaged"):
            self._warn(f"{state}; {otherwise}", level)
        return result

    def obtain(self, compute: Callable[[], Result], wait: bool = True) -> Result:
        """Return the valid result; if there is none, compute and keep it."""
        # If another process is computing it, wait for that process; without `wait`, raise a
        # BlockingIOError.
        if (result := self.recorded("it is computed again", level=4)) is not None:
            return result
        with files.lock(self.path.with_name(f".{self.name}.lock"), wait):
            result, _ = self.look()  # another process may have been faster
            return self._keep(compute) if result is None else result

    def _keep(self, compute: Callable[[], Result]) -> Result:
        """Compute the result, write it, and return it as read from the file."""
        result: Result = {"study": self.study, "name": self.name, "profile": self.profile}
        result["recipe"] = RECIPE
        if self.profile == "quick":
            result["cache"] = _cache_key()
        # Taken before the run, which may last hours: somebody may edit and commit meanwhile.
        about = provenance(1, None)
        result |= {"provenance": about, **compute()}
        result["provenance"]["commit"] = about["commit"]  # other processes look later
        try:
            write(self.path, result)
        except OSError as error:
            advice = f"set {FOLDER} to a writable copy of {root()}"
            self._warn(f"cannot be kept ({error}); {advice}", 4)
            return dict(json.loads(json.dumps(result)))  # as it would be read
        for path in self.path.parent.glob(self.checkpoint("*").name + "*"):
            path.unlink(missing_ok=True)
        return read(self.path)

    def _warn(self, what: str, level: int) -> None:
        text = f"{self.name}.json of {self.study}, {self.profile}: {what}"
        warnings.warn(text, ResultWarning, stacklevel=level)


def _cache_key() -> str:
    machine = f"{cpu_model()}\0{cpu_count()}\0{platform.python_version()}"
    packages = [f"{name} {installed(name)}" for name in _TIMED]
    return hashlib.sha256(f"{sources_sha256()}\0{machine}\0{packages}".encode()).hexdigest()


def _with_others(measure: Callable[[], Result]) -> Result:
    """Measure, and add as "others" how many CPUs other processes used just before."""
    return {"others": busy_cpus(), **measure()}


#: By name, the parts that a study measures: where each is kept, and what computes it.
Parts = dict[Any, tuple[Entry, Callable[[], Result]]]


def only(found: Mapping[Any, Result]) -> Result:
    """Return the result of a study that has one part."""
    return next(iter(found.values()), NOTHING)


def measured(
    parts: Callable[[str], Parts], page: Callable[[dict[Any, Result]], Any] = dict
) -> tuple[Callable[[str], list[Entry]], Callable[[], Any], Callable[..., Any]]:
    """Return the functions of a measured study's module: `entries`, `recorded` and `load`."""

    def entries(profile: str) -> list[Entry]:
        """Return the entries of a profile's results."""
        return [entry for entry, _ in parts(profile).values()]

    def recorded() -> Any:
        """Return recorded results; measure missing ones only in a build of profile "paper"."""
        if current_profile() == "paper":
            return load("paper")
        found = {name: entry.recorded() for name, (entry, _) in parts("paper").items()}
        return page({name: result for name, result in found.items() if result is not None})

    def load(profile: str | None = None, reasons: list[str] | None = None) -> Any:
        """Return a profile's results; measure missing ones, or add to `reasons` why not."""
        asked, found = parts(current_profile(profile)), {}
        reasons = [] if reasons is None else reasons
        with bar(len(asked), bar_format="{desc} ({n}/{total})", hidden=len(asked) == 1) as shown:
            for name, (entry, measure) in asked.items():
                shown.set_description_str(entry.name)
                try:
                    found[name] = entry.obtain(partial(_with_others, measure))
                except (DataError, ClusterError) as error:
                    reasons.append(f"This cannot be measured here: {error}.")
                    found[name] = {"missing": reasons[-1]}
                shown.update()
        return page(found)

    return entries, recorded, load


# --- files ---------------------------------------------------------------------------------------

_DIGEST = b'"digest": "%s"'  # as written in a file


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def write(path: Path, result: Result) -> None:
    """Write a result with its digest, atomically; raise ValueError if a number is not finite."""
    content = signed({"format_version": FORMAT_VERSION, "digest": "", **result})
    with files.atomic_write(path) as file:
        file.write(content)


def signed(result: Result) -> bytes:
    """Return the content of a result's file, JSON with one entry per line, its digest included."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}"
        for name, value in {**result, "digest": ""}.items()
    )
    content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    return content.replace(_DIGEST % b"", _DIGEST % _sha256(content), 1)


def read(path: Path) -> Result:
    """Read a result; raise FileNotFoundError, or ResultError with what is wrong with the file."""
    content = path.read_bytes()
    try:
        result = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"not JSON ({error})") from None
    if not isinstance(result, dict):
        raise ResultError(f"expected a JSON object, got {type(result).__name__}")
    version = result.get("format_version")
    if version != FORMAT_VERSION:
        raise ResultError(f"format_version: expected {FORMAT_VERSION}, got {version!r}")
    digest = str(result.get("digest")).encode(errors="replace")
    if _sha256(content.replace(_DIGEST % digest, _DIGEST % b"", 1)) != digest:
        raise ResultError("the content does not match its digest: it was changed after writing")
    return result


def origin(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Return the origin of results: machines, versions and commits."""
    commits = [about.get("commit") or "" for about in provenances]
    found = {
        "": {f"{p['cores']} core{'s' * (p['cores'] > 1)} of {p['cpu']}" for p in provenances},
        "sparsecore ": {about.get("sparsecore", "") for about in provenances},
        "commit ": {commit[:7] + " with changes" * commit.endswith("+") for commit in commits},
    }
    told = {word: ", ".join(sorted(texts - {""})) for word, texts in found.items()}
    return ", ".join(word + text for word, text in told.items() if text)

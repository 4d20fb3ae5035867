"""Files of what a page measures itself: valid for this code, on this machine.

A measurement is one JSON file, ``<root>/<profile>/<study>/<name>.json``. Those of the profile that
is built are kept as long as code and machine are the same; recorded ones are shown whatever their
age, with their provenance. Training runs, which hang on data and configuration, are in `studies`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sparsecore import files
from sparsecore.paper import results
from sparsecore.paper.results import ResultWarning
from sparsecore.provenance import provenance

Result = dict[str, Any]


def used_by_others(seconds: float = 0.5) -> float:
    """Return how many CPUs other processes use, while this one sleeps for so many seconds."""
    return psutil.cpu_percent(seconds) / 100 * psutil.cpu_count()


@dataclass(frozen=True)
class Measurements:
    """The files of a study.

    Attributes
    ----------
    study : str
        Key.
    code_sha256 : callable
        Returns the digest of the code that is measured.
    names : callable
        Returns the names of a profile's measurements.
    """

    study: str
    code_sha256: Callable[[], str]
    names: Callable[[str], Sequence[str]]

    def path(self, name: str, profile: str) -> Path:
        """Return the file of a measurement."""
        return results.root() / profile / self.study / f"{name}.json"

    def read(self, name: str, profile: str) -> Result | None:
        """Return a measurement whatever its age; None if there is none.

        Warns
        -----
        ResultWarning
            If the file is damaged or something else, with its name.
        """
        path = self.path(name, profile)
        try:
            result = json.loads(path.read_bytes())
            if not isinstance(result, dict) or (result.get("study"), result.get("name")) != (
                self.study,
                name,
            ):
                raise ValueError("not a measurement of that name")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            warnings.warn(
                f"{path.name} of {self.study}, {profile}: damaged: {error}; it is left out or "
                "measured anew",
                ResultWarning,
                stacklevel=3,
            )
            return None
        return result

    def valid(self, name: str, profile: str) -> Result | None:
        """Return a measurement of this code on this machine; None if there is none."""
        result = self.read(name, profile)
        identity = self._identity()
        fits = result is not None and all(result.get(key) == identity[key] for key in identity)
        return result if fits else None

    def look(self, profile: str) -> dict[str, str]:
        """Return for each name "present", "missing", "stale" or "damaged", with the reason."""
        states = {}
        for name in self.names(profile):
            if not self.path(name, profile).exists():
                states[name] = "missing"
            elif self.valid(name, profile) is not None:
                states[name] = "present"
            else:
                states[name] = "stale or damaged: not of this code on this machine"
        return states

    def write(self, name: str, profile: str, found: Result) -> Result:
        """Keep what was found, and return it with what it hangs on."""
        result = {
            "study": self.study,
            "name": name,
            "profile": profile,
            **self._identity(),
            **found,
        }
        files.write_json(self.path(name, profile), result)
        return result

    def _identity(self) -> Result:
        about = provenance(1, None)
        return {
            "code_sha256": self.code_sha256(),
            "machine": {name: about[name] for name in ("cpu", "cores", "python")},
        }

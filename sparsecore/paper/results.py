"""Result files: where they are, what they must hold, how they are written and read.

One run is one JSON file, ``<root>/<profile>/<study>/<name>.json``: what `experiment.run` returns,
or that the run diverged, and what it was a run of; later, that `repeat` found the same. Each file
carries a digest of itself and of the sources that made it, so that a file that was cut short,
edited, copied from elsewhere or overtaken by a change of the code is told from a good one. Which
runs there are is said in `conditions`, running them is the business of `studies`.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import os
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import sparsecore
from sparsecore import files

FORMAT_VERSION = 2
ENVIRONMENT = "SPARSECORE_RESULTS"

_NUMBER = (int, float)
_ROWS = (int, type(None))
# Name -> type, a schema of the values of a dict, or a one-element list with the schema of a list's
# items.
_SCHEMA: dict[str, Any] = {
    "format_version": int,
    "digest": str,
    "study": str,
    "profile": str,
    "condition": {"dataset": str, "method": str},
    "limit": {"train": _ROWS, "test": _ROWS},
    "code_sha256": str,
    "data": {
        "title": str,
        "domain": str,
        "n_features": int,
        "n_classes": int,
        "n_train": int,
        "n_test": int,
        "source": str,
        "surrogate": bool,
    },
    "config": dict,
    "seed": int,
    "provenance": {"cpu": str, "cores": int, "threads": int, "ranks": int, "packages": dict},
}
# What a run that came to its end found.
_FOUND: dict[str, Any] = {
    "test_accuracy": _NUMBER,
    "best_test_accuracy": _NUMBER,
    "nnz_start": int,
    "nnz_end": int,
    "seconds": {"train": _NUMBER, "evaluate": _NUMBER},
    "samples_per_second": _NUMBER,
    "peak_rss_mb": _NUMBER,
    "weights_sha256": str,
    "epochs": [{"epoch": int, "nnz": int}],
}
# What `repeat` adds.
_REPEATED: dict[str, Any] = {"repeated": {"code_sha256": str, "epochs": int}}


class ResultError(ValueError):
    """A file that is not a whole result of ours."""


class ResultWarning(UserWarning):
    """A result file was set aside, and why."""


def root() -> Path:
    """Return the folder of all results.

    Returns
    -------
    Path
        ``$SPARSECORE_RESULTS`` if that is set; else ``book/results`` of the project that the
        working directory is in; outside of it, ``results`` in the working directory.
    """
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "book" / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder / "book" / "results"
    return here / "results"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with its digest, atomically.

    Raises
    ------
    ResultError
        If it does not have the form of a result.
    ValueError
        If it holds NaN or infinity.
    """
    whole = {"format_version": FORMAT_VERSION, "digest": "", **result}
    whole["digest"] = _digest(whole)
    _check(whole, _schema(whole), path.name)
    files.write_json(path, whole)


def read(path: Path) -> dict[str, Any]:
    """Read a result and check its form and digest.

    Raises
    ------
    FileNotFoundError
    ResultError
        If the file is damaged or something else; the message says what is wrong with it.
    """
    try:
        result = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ResultError(f"not JSON ({error})") from None
    if not isinstance(result, dict):
        raise ResultError(f"expected a JSON object, got {type(result).__name__}")
    version = result.get("format_version")
    if version != FORMAT_VERSION:
        raise ResultError(f"format_version: expected {FORMAT_VERSION}, got {version!r}")
    _check(result, _schema(result), "")
    if _digest(result) != result["digest"]:
        raise ResultError("its content does not have the digest that it was written with")
    return result


def _schema(result: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a result: of a run that diverged, or of one that came to its end."""
    repeated = _REPEATED if "repeated" in result else {}
    return {**_SCHEMA, **({"diverged": str} if "diverged" in result else _FOUND), **repeated}


def _digest(result: dict[str, Any]) -> str:
    rest = {name: value for name, value in result.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check(value: Any, schema: Any, place: str) -> None:
    """Raise a ResultError that names the first place where `value` is not as `schema` says."""
    if isinstance(schema, dict):
        _check(value, dict, place)
        for name, inner in schema.items():
            inside = f"{place}.{name}".lstrip(".")
            if name not in value:
                raise ResultError(f"{inside}: missing")
            _check(value[name], inner, inside)
    elif isinstance(schema, list):
        _check(value, list, place)
        for number, item in enumerate(value):
            _check(item, schema[0], f"{place}[{number}]")
    else:
        kinds = schema if isinstance(schema, tuple) else (schema,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ResultError(f"{place}: expected {names}, got {value!r:.60}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ResultError(f"{place}: expected a finite number, got {value}")


def training_seconds(run: dict[str, Any]) -> float:
    """Return seconds of training, evolution included and tests not, of any kind of run."""
    # A parallel run evolves within its training time, the others book it by itself.
    return float(run["seconds"]["train"] + run["seconds"].get("evolve", 0.0))


def core_seconds(run: dict[str, Any]) -> float:
    """Return seconds of training × cores that trained.

    Runs on a different number of cores are compared by it. That is hard on the one with more of
    them: no other method loses nothing when it is spread.
    """
    about = run["provenance"]
    cores = min(about["ranks"] * about["threads"], about["cores"])
    return training_seconds(run) * cores


def have_learnt(runs: list[dict[str, Any]]) -> bool:
    """Tell whether networks do better than guessing, by the training loss of their last epoch.

    Not by accuracy: always the most frequent class may be right more often than one in so many.
    """
    classes = runs[0]["data"]["n_classes"]
    loss = sum(run["epochs"][-1]["loss"] for run in runs) / len(runs)
    return bool(loss < 0.99 * math.log(classes))


def is_of(code_sha256: str, run: dict[str, Any]) -> bool:
    """Tell whether code of this digest made a result, or has repeated its first epochs."""
    return code_sha256 in (run["code_sha256"], run.get("repeated", {}).get("code_sha256"))


def of_one_machine(*groups: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return of each group the runs whose times can be compared with those of the others.

    Parameters
    ----------
    *groups : list of dict
        Runs.

    Returns
    -------
    list of list of dict
        The runs on one kind of CPU: of those that each group has runs of, the one with most runs.
        Empty lists if there is none. On how many of its cores is up to `core_seconds`.
    """
    of = [[run["provenance"]["cpu"] for run in group] for group in groups]
    common = sorted(set.intersection(*map(set, of)))
    chosen = max(common, key=lambda machine: sum(m.count(machine) for m in of), default=None)
    return [
        [run for run, machine in zip(group, machines, strict=True) if machine == chosen]
        for group, machines in zip(groups, of, strict=True)
    ]


def origin(about: dict[str, Any]) -> str:
    """Say of a result's provenance: machine, version and commit."""
    commit = about.get("commit") or ""
    return (
        f"{about['cpu']}, {about['cores']} cores, sparsecore {about['sparsecore']}"
        f"{' commit ' * bool(commit)}{commit[:7]}{' with changes' * commit.endswith('+')}"
    )


# --- the code that made a result -----------------------------------------------------------------

# Their code does not change what a run computes, nor does how many threads compute it; the content
# of the data has a hash of its own.
_NO_INFLUENCE = tuple(
    f"sparsecore.{name}" for name in ("checkpoint", "datasets", "governor", "provenance")
)


@cache
def code_sha256(*modules: str) -> str:
    """Return a digest of the sources that `modules` of the package run on.

    Parameters
    ----------
    *modules : str
        Full names, such as "sparsecore.experiment".

    Returns
    -------
    str
        SHA-256 over these modules and all that they import from the package, directly or not, but
        for those that cannot change a result, unless they are named. Comments, docstrings and empty
        lines do not count: results that took hours stay valid when only the words change.
    """
    total = hashlib.sha256()
    for name in sorted(_closure(modules)):
        total.update(f"{name}\0{essence(_file(name).read_text())}\0".encode())
    return total.hexdigest()


def _file(module: str) -> Path:
    path = Path(sparsecore.__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _modules() -> frozenset[str]:
    """Return the names of the package's modules, as they are spelled on disk."""
    # Not by looking whether there is such a file: where case does not count, a class has one too.
    root = Path(sparsecore.__file__).parent
    parts = [path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")]
    names = (".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)
    return frozenset(f"sparsecore.{name}" for name in names if name)


def _closure(modules: Iterable[str]) -> set[str]:
    waiting, found = set(modules), set()
    left_out = set(_NO_INFLUENCE) - waiting  # unless asked for
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse(_file(name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            waiting |= set(names) & _modules()
        waiting -= found | left_out
    return found


def essence(source: str) -> str:
    """Return Python source without comments, docstrings and empty lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            assert text.end_lineno is not None
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())

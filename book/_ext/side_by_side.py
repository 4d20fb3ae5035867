"""A Sphinx extension that executes notebooks side by side before they are read.

What lives here: the execution of those notebooks that are not in the cache and do not measure
times. In profile "paper" any page may measure some, and none is executed here. MyST-NB finds their
outputs in jupyter-cache when it reads them, one after the other. It executes the rest by itself:
those of ``execution_alone``, which need a quiet machine, and those that failed here, whose errors
it reports.
"""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_cache.executors.utils import ExecutionResult
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_AT_ONCE = 2  # more could run out of memory: each may read a data set of a gigabyte


def _executed(path_and_notebook: tuple[Path, NotebookNode]) -> tuple[Path, ExecutionResult]:
    from jupyter_cache.executors.utils import single_nb_execution

    path, notebook = path_and_notebook
    return path, single_nb_execution(notebook, str(path.parent), timeout=None, allow_errors=False)


def _execute(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    if os.environ.get("SPARSECORE_PROFILE") == "paper":
        return
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from sphinx.util import logging

    cache = get_cache(env.mystnb_config.execution_cache_path)  # type: ignore[attr-defined]

    def cached(notebook: NotebookNode) -> bool:
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            return False
        return True

    beside = [Path(env.doc2path(name)) for name in names if name not in app.config.execution_alone]
    read = ((p, nbformat.read(p, nbformat.NO_CONVERT)) for p in beside if p.suffix == ".ipynb")
    todo = [(path, notebook) for path, notebook in read if not cached(notebook)]
    workers = min(_AT_ONCE, os.cpu_count() or 1, len(todo))
    if workers < 2:
        return
    with ThreadPool(workers) as pool:  # its threads do not keep an interrupted build alive
        for number, (path, result) in enumerate(pool.imap_unordered(_executed, todo), 1):
            ended = f"Executed notebook in {result.time:.2f} seconds"
            if result.err is None:
                bundle = CacheBundleIn(result.nb, path, data={"execution_seconds": result.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            else:
                ended = f"failed ({type(result.err).__name__}), is executed once more"
            about = f"{path}: {ended}, {number} of {len(todo)} side by side"
            logging.getLogger(__name__).info(about)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.setup_extension("myst_nb")
    app.add_config_value("execution_alone", [], "")
    app.connect("env-before-read-docs", _execute)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}

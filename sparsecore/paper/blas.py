"""Which matrix library the dense baselines run on, so that a time can be judged by it."""

from __future__ import annotations

from threadpoolctl import threadpool_info


def loaded_blas() -> list[str]:
    """Return the matrix libraries that are loaded in this process, with kernel and threads."""
    return sorted(
        {
            " ".join(
                str(info[name])
                for name in ("internal_api", "version", "architecture")
                if info.get(name)
            )
            + f" ({info['num_threads']} threads)"
            for info in threadpool_info()
            if info["user_api"] == "blas"
        }
    )

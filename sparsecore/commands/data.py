"""``data``: list, fetch and verify the data sets."""

import argparse
from typing import Any

from sparsecore import datasets


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser("data", help="list, fetch and verify the data sets")
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | fetch | verify")
    verbs.add_parser("list", help="list the data sets and show which are here").set_defaults(
        function=_list_data
    )
    fetch = verbs.add_parser("fetch", help="download a data set to the cache")
    fetch.add_argument("name", metavar="NAME", help="as `data list` shows it")
    fetch.set_defaults(function=_fetch_data)
    verify = verbs.add_parser("verify", help="check the SHA-256 hashes of the contents")
    verify.add_argument("name", metavar="NAME", nargs="?", help="(all that this machine has)")
    verify.set_defaults(function=_verify_data)


def _list_data(options: argparse.Namespace) -> None:
    for name in datasets.names():
        facts = datasets.describe(name)
        here = "here" if datasets.available(name) else "not here"
        print(
            f"{name:18} {facts['domain']:10} {facts['n_features']:>6} features "
            f"{facts['n_classes']:>3} classes {facts['n_train']:>7}/{facts['n_test']:<6} "
            f"{'a surrogate here' if datasets.stands_in(name) else here}"
        )


def _fetch_data(options: argparse.Namespace) -> None:
    folder = datasets.fetch(options.name)
    print(f"{options.name}: {folder or 'nothing to fetch: always available'}")


def _verify_data(options: argparse.Namespace) -> None:
    names = [options.name] if options.name else filter(datasets.available, datasets.names())
    damaged = []
    for name in names:
        kind = " (a surrogate: the files are not here)" if datasets.stands_in(name) else ""
        try:
            for what, digest in datasets.verify(name).items():
                print(f"{name}{kind}: {what}: sha256 {digest}")
        except datasets.DataCorrupt as error:
            damaged.append(str(error))
    if damaged:
        raise datasets.DataError("\n".join(damaged))

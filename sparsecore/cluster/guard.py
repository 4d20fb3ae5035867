"""A program that stops a cluster when the process that holds its standard input open ends."""

import os
import sys

if __name__ == "__main__":
    sys.stdin.read()
    if os.path.exists(sys.argv[1]):
        from ipyparallel import Cluster

        Cluster.from_file(sys.argv[1]).stop_cluster_sync()

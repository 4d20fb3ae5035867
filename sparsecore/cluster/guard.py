"""A program that stops a cluster when its standard input gets a character, or its writer ends."""

import os
import sys

if __name__ == "__main__":
    sys.stdin.read(1)
    if os.path.exists(sys.argv[1]):
        from ipyparallel import Cluster

        Cluster.from_file(sys.argv[1]).stop_cluster_sync()

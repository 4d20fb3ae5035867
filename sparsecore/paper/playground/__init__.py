"""The playground: sessions of runs that are stopped, changed and compared, and their panel."""

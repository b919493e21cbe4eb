"""The functional core: keys, pytrees, networks, distributions, optimisers, compilation."""

"""Training retriever and generator together from (x, y) alone (Lewis et al. 2020, §2.4)."""

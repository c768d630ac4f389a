"""The Ray cluster: joining it, its nodes, its liveness, and a pool of actors."""

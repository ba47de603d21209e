"""How new weights get to a server, one file a route: `gloo` between CPUs, `nccl` between GPUs."""

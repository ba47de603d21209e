"""`rlkit init`: looks at a model, data and this machine, and proposes a config, each setting with its reason."""

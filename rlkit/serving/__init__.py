"""vLLM's own server, with what a run needs of it: the command that starts it, and what it loads of ours."""

"""Training with DeepSpeed: the policy, its frozen reference and a critic are instances of one engine."""

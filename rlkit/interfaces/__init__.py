"""The contracts: learning.py (algorithms), rewards.py (reward functions; no torch), generation.py (samplers)."""

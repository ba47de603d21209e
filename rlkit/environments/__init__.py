"""Conversations with environments: the processes that they live in, and what they answer."""

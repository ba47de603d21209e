"""rlkit from Python: what `import rlkit` gives for training, sweeping, comparing and looking at what came of it.

training.py starts a run, run.py is one, sweeping.py and comparing.py are many; messages.py has errors speak Python.
Importing these needs no torch.
"""

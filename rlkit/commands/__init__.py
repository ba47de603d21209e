"""The commands that cli.py gathers, a file for each family. They import what they run only when they run."""

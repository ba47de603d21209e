"""Presets: `rlkit config ls` lists them, `rlkit config cp NAME FILE` makes one yours."""

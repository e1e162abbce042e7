"""Packages under other people's names. This folder goes on PYTHONPATH where one of them is wanted (see ../hf3fs.py)."""

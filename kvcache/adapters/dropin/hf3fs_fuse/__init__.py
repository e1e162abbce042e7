"""Stands in for 3FS's Python package: see emberfs.kvcache.adapters.hf3fs."""

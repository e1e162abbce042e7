"""The chunk engine of one target: `open_target` opens a directory, `ChunkEngine` (engine.py) is its face."""

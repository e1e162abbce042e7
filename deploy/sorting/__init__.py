"""Sort benchmarks (GraySort and its relatives): records, their validation, and a sort of files that are larger than memory.

- `generator.py`: the records of gensort 1.5, byte for byte; `summary.py`: what valsort says of a file, and its summary files;
  `programs.py`: the two programs.
- `keys.py`: records by their keys; `places.py`: files of the cluster, and of this machine (a mount is one); `external.py`: the sort in two
  phases; `parallel.py`: generating and validating with several processes.

Needs numpy.
"""

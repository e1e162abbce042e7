"""LMCache's own check of a storage backend (`lmcache.v1.basic_check`), without the tokenizers that it imports and does not use here.

python -m emberfs.tests.kvcache.engines.lmcache_check --mode test_storage_manager ...
"""

from __future__ import annotations

import runpy
import sys

from .parts import stand_in

if __name__ == "__main__":
    stand_in("transformers", AutoTokenizer=None, AutoConfig=None)
    sys.argv[0] = "basic_check"
    runpy.run_module("lmcache.v1.basic_check", run_name="__main__")

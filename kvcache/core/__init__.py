"""The client of the KV cache, written once as coroutines over one environment; the faces are kvcache/blocking.py and kvcache/aio.py."""

"""Proof on a GPU: the attention state of a real model goes into the KV cache, the process ends, another one takes it back into GPU
memory and goes on generating, token for token the same.

    python -m emberfs.tests.kvcache.gpu [--tokens 16384] [--processes 1,2,4,8,16]

needs torch with CUDA and transformers; everything else is emberfs and numpy. It starts a cluster of its own in a temporary directory and
prints one JSON object: tokens compared, time to the first token with and without the cache, and the bandwidth of `get_into` with several
client processes. The model has random weights of a fixed seed (what it says makes no sense, but exactly the same nonsense each time).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 256
LAYERS, KV_HEADS, HEADS, HEAD_DIM, VOCABULARY = 16, 8, 16, 128, 32_000
NEW_TOKENS = 64
SEED = 20


def model_of() -> Any:
    """A Llama with random weights, bf16, on the GPU: 64 KiB of attention state a token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=4 * HEADS * HEAD_DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=1 << 17,
    )
    with torch.device("cuda"):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def prompt_of(tokens: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randint(0, VOCABULARY, (1, tokens), generator=generator).cuda()


def keys_of(prompt: Any) -> list[bytes]:
    """One key a block, each the hash of the one before and the block's tokens, as engines do."""
    keys, before = [], b""
    for block in prompt[0].cpu().numpy().reshape(-1, BLOCK_TOKENS):
        before = hashlib.sha256(before + block.tobytes()).digest()
        keys.append(before)
    return keys


def block_shape() -> tuple[int, ...]:
    return (LAYERS, 2, KV_HEADS, BLOCK_TOKENS, HEAD_DIM)


def block_bytes() -> int:
    size = 2  # bf16
    for extent in block_shape():
        size *= extent
    return size


def opened(url: str) -> tuple[Any, Any]:
    from emberfs.kvcache import KVCache, NamespaceSpec

    kv = KVCache(url)
    spec = NamespaceSpec(
        engine="transformers",
        model="random-llama",
        revision=str(SEED),
        dtype="bfloat16",
        page_tokens=BLOCK_TOKENS,
        layout="layer,kv,head,token,dim",
        object_bytes=block_bytes(),
    )
    return kv, kv.namespace(spec)


def pinned(kv: Any, count: int) -> tuple[Any, Any]:
    """Room for so many blocks: registered with the KV cache (servers of this host write into it) and pinned for the GPU. As the cache's
    buffer, and as a tensor."""
    import torch

    buffer = kv.allocate(count * block_bytes())
    tensor = torch.frombuffer(buffer.view, dtype=torch.uint8)
    status = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.numel(), 0)
    if int(status):
        raise SystemExit(f"cudaHostRegister failed: {status}")
    return buffer, tensor.view(torch.bfloat16).view(count, *block_shape())


def generated(model: Any, cache: Any, first: Any, count: int) -> list[int]:
    """Greedy decoding from the token `first` on. The last layer in float32: with 8 bits of mantissa the first of several equal ones would
    be a matter of luck."""
    import torch

    found, token, head = [], first, model.lm_head.weight.float().T
    with torch.inference_mode():
        for _ in range(count):
            state = model.model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state
            token = (state[:, -1:].float() @ head).argmax(-1)
            found.append(int(token))
    return found


def digest_of(blocks: Any) -> str:
    """Of the bytes of the whole state."""
    import torch

    return hashlib.sha256(blocks.view(torch.uint8).numpy()).hexdigest()


def cache_of(moved: Any) -> Any:
    """The model's cache out of blocks on the GPU."""
    from transformers import DynamicCache

    cache = DynamicCache()
    tokens = moved.shape[0] * BLOCK_TOKENS
    for layer in range(LAYERS):
        parts = moved[:, layer].transpose(0, 2).transpose(0, 1)  # kv, head, block, token, dim
        keys_state, values_state = parts.reshape(2, 1, KV_HEADS, tokens, HEAD_DIM)
        cache.update(keys_state, values_state, layer)
    return cache


def save(url: str, tokens: int) -> dict[str, Any]:
    """Compute the state of the prompt, generate, and store the state."""
    import torch
    from transformers import DynamicCache

    model, prompt = model_of(), prompt_of(tokens)
    with torch.inference_mode():  # once for nothing: kernels are chosen and memory is taken
        model(input_ids=prompt[:, :BLOCK_TOKENS], use_cache=True, logits_to_keep=1)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=prompt[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        first = generated(model, cache, prompt[:, -1:], 1)
    torch.cuda.synchronize()
    prefill = time.perf_counter() - begun
    # The prompt's last token is computed again by whoever takes the state back, as engines do: the state up to there is stored, whole
    # blocks of it.
    keys = keys_of(prompt[:, : (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS])
    whole = len(keys) * BLOCK_TOKENS
    kv, namespace = opened(url)
    buffer, blocks = pinned(kv, len(keys))
    for layer in range(LAYERS):
        for part, state in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
            pieces = state[0, :, :whole].reshape(KV_HEADS, len(keys), BLOCK_TOKENS, HEAD_DIM).transpose(0, 1)
            blocks[:, layer, part].copy_(pieces)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    offsets = [number * block_bytes() for number in range(len(keys))]
    statuses = kv.put_from(namespace, keys, (buffer, offsets, block_bytes()))
    stored = time.perf_counter() - begun
    rest = generated(model, cache, torch.tensor([first], device="cuda"), NEW_TOKENS - 1)
    # Once more out of the very bytes that were stored, without the KV cache between: what the model itself repeats.
    again = generated(model, cache_of(blocks.cuda()), prompt[:, -1:], NEW_TOKENS)
    kv.close()
    return {
        "tokens": first + rest,
        "repeats_itself": again == first + rest,
        "digest": digest_of(blocks),
        "blocks": len(keys),
        "stored": int(sum(int(status) == block_bytes() for status in statuses)),
        "bytes": len(keys) * block_bytes(),
        "put_s": stored,
        "first_token_computed_s": prefill,
    }


def load(url: str, tokens: int) -> dict[str, Any]:
    """Take the state back and generate."""
    import torch

    model, prompt = model_of(), prompt_of(tokens)
    with torch.inference_mode():
        model(input_ids=prompt[:, :BLOCK_TOKENS], use_cache=True, logits_to_keep=1)
    torch.cuda.synchronize()
    keys = keys_of(prompt[:, : (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS])
    whole = len(keys) * BLOCK_TOKENS
    kv, namespace = opened(url)
    buffer, blocks = pinned(kv, len(keys))
    times = []
    for _ in range(2):  # the first time the pages of the buffer are new, as they are once in the life of an engine
        begun = time.perf_counter()
        match = kv.match(namespace, keys)
        offsets = [number * block_bytes() for number in range(match.n)]
        statuses = kv.get_into(namespace, keys[: match.n], (buffer, offsets, block_bytes()))
        got = time.perf_counter() - begun
        moved = blocks.cuda(non_blocking=True)
        cache = cache_of(moved)
        with torch.inference_mode():
            if whole < tokens - 1:
                model(input_ids=prompt[:, whole:-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            first = generated(model, cache, prompt[:, -1:], 1)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun, got))
    rest = generated(model, cache, torch.tensor([first], device="cuda"), NEW_TOKENS - 1)
    kv.close()
    return {
        "tokens": first + rest,
        "digest": digest_of(blocks),
        "matched": match.n,
        "got": int(sum(int(status) == block_bytes() for status in statuses)),
        "first_token_loaded_s": times[-1][0],
        "first_token_loaded_first_time_s": times[0][0],
        "get_into_gib_s": match.n * block_bytes() / times[-1][1] / (1 << 30),
    }


def read(url: str, tokens: int) -> dict[str, Any]:
    """One of several client processes that read everything, again and again for a while. Waits for a line on stdin to begin."""
    prompt = prompt_of(tokens)
    keys = keys_of(prompt[:, : (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS])
    kv, namespace = opened(url)
    buffer = kv.allocate(len(keys) * block_bytes())
    offsets = [number * block_bytes() for number in range(len(keys))]
    destination = (buffer, offsets, block_bytes())
    kv.get_into(namespace, keys, destination)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, moved = time.perf_counter(), 0
    while time.perf_counter() - begun < 5:
        statuses = kv.get_into(namespace, keys, destination)
        moved += sum(max(0, int(status)) for status in statuses)
    elapsed = time.perf_counter() - begun
    kv.close()
    return {"gib_s": moved / elapsed / (1 << 30)}


def together(url: str, tokens: int, processes: int) -> float:
    """GiB/s of so many client processes at once."""
    begun = [_started("read", url, tokens) for _ in range(processes)]
    for process in begun:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"a reader failed: {process.communicate()[0]}")
    for process in begun:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(json.loads(process.communicate()[0])["gib_s"]) for process in begun)


def _started(step: str, url: str, tokens: int) -> subprocess.Popen[str]:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic matrix products want
    command = [sys.executable, "-m", "emberfs.tests.kvcache.gpu", "--step", step, "--url", url, "--tokens", str(tokens)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _result(step: str, url: str, tokens: int) -> dict[str, Any]:
    process = _started(step, url, tokens)
    output = process.communicate("")[0]
    if process.returncode:
        raise SystemExit(f"{step} failed with {process.returncode}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384 + 1)
    parser.add_argument("--processes", default="1,2,4,8,16")
    parser.add_argument("--nodes", type=int, default=4, help="storage processes")
    parser.add_argument("--step", choices=("save", "load", "read"))
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"save": save, "load": load, "read": read}[options.step](options.url, options.tokens)))
        return
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        emberfs = [sys.executable, "-m", "emberfs"]
        size = str(16 << 30)
        up = [*emberfs, "up", "--data", str(data), "--nodes", str(options.nodes), "--kv-capacity", size]
        subprocess.run(up, check=True, stdout=sys.stderr)
        url = f"ember://{str(data).replace('/', '%2F')}"
        try:
            saved = _result("save", url, options.tokens)
            loaded = _result("load", url, options.tokens)
            speeds = {n: together(url, options.tokens, int(n)) for n in options.processes.split(",") if n}
        finally:
            subprocess.run([*emberfs, "down", "--data", str(data)], check=False, stdout=sys.stderr)
    tokens = list(zip(saved.pop("tokens"), loaded.pop("tokens"), strict=True))
    same = sum(one == other for one, other in tokens) == NEW_TOKENS
    first_other = next((at for at, (one, other) in enumerate(tokens) if one != other), None)
    same_bytes = saved.pop("digest") == loaded.pop("digest")
    found = {"same_tokens": same, "first_other": first_other, "same_bytes": same_bytes, **saved, **loaded}
    print(json.dumps({**found, "get_into_gib_s_by_processes": speeds, "cpus": os.cpu_count()}))
    raise SystemExit(0 if same and same_bytes else 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What others reach on this GPU, for comparison within one run: JSON rows as `keyline bench --json` has them.

    gpu_peers.py prefill [--prompt 16384]     transformers, Llama-8B shapes, random bf16 weights, SDPA
    gpu_peers.py attention [--batch 8] [--depth 16384]   decode attention of one layer by cuDNN and FlashAttention

Needs PyTorch with CUDA; prefill also transformers.
"""
import argparse
import json
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def prefill(a):
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=131072,
                         attn_implementation='sdpa')
    torch.set_default_dtype(torch.bfloat16)
    with torch.device('cuda'):
        model = LlamaForCausalLM(config).eval()
        prompt = torch.randint(0, config.vocab_size, (1, a.prompt))
    times = []
    with torch.inference_mode():
        for _ in range(a.repeat + 1):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            model(prompt, use_cache=True, logits_to_keep=1).logits.argmax().item()
            times.append(time.perf_counter() - begin)
    return [{'name': f'transformers prefill {a.prompt}', 'value': a.prompt / statistics.median(times[1:]),
             'unit': 'tok/s'}]


def attention(a):
    """Many caches in turn, so that none is in L2 when it is read again."""
    rows = []
    shape = (a.batch, KV_HEADS, a.depth, HEAD_DIM)
    size = 2 * 2 * a.batch * KV_HEADS * a.depth * HEAD_DIM
    copies = max(2, int(2e9 // size))
    caches = [(torch.randn(shape, device='cuda', dtype=torch.bfloat16), torch.randn(shape, device='cuda',
               dtype=torch.bfloat16)) for _ in range(copies)]
    # Query heads of a group as rows of one KV head: what grouped-query decoding comes to without a mask.
    q = torch.randn((a.batch, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM), device='cuda', dtype=torch.bfloat16)
    for name, backend in (('cuDNN', SDPBackend.CUDNN_ATTENTION), ('FlashAttention', SDPBackend.FLASH_ATTENTION)):
        times = []
        with sdpa_kernel(backend), torch.inference_mode():
            for _ in range(a.repeat + 1):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for k, v in caches:
                    torch.nn.functional.scaled_dot_product_attention(q, k, v)
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) * 1e-3 / copies)
        rows.append({'name': f'{name} decode attention B={a.batch} S={a.depth}',
                     'value': size / statistics.median(times[1:]), 'unit': 'B/s'})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('prefill', 'attention'))
    parser.add_argument('--prompt', type=int, default=16384)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--depth', type=int, default=16384)
    parser.add_argument('--repeat', type=int, default=5)
    a = parser.parse_args()
    print(json.dumps({'prefill': prefill, 'attention': attention}[a.what](a)))


if __name__ == '__main__':
    main()

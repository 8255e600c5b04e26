"""Stock SGLang on a machine without a GPU: the same server and the same speculation, computed in plain torch.

Why the package exists: SGLang's CPU device imports a compiled package, `sgl_kernel`, whose CPU build is published
nowhere. SGLang's own fallbacks without it are slow and know no speculation. Tests, the demo and small services need the
real engine on any machine.

How a CPU server comes to run, in reading order:

1. `launch_settings` holds the flags and the environment variables that the launcher adds. One variable switches the CPU
   engine on. PYTHONPATH gains the folder `standin/`.
2. `standin/sgl_kernel` answers SGLang's `import sgl_kernel`. It only forwards names to the modules below.
3. `cpu_plugin` is loaded by SGLang into each of its processes. It checks the signatures of the SGLang functions that
   are slow on a CPU, and wraps them. `wrappers` holds the replacements.
4. The replacements compute with:
   - `attention_backend`: attention over the paged KV cache, for decoding, prefill and verification alike.
   - `draft_trees`: links the draft's and NGRAM's choices, and verifies them.
   - `kv_slots`: bookkeeping of which KV slot belongs to which position.
   - `packed_weights`: matrix products on weights in oneDNN's own layout.
   - `lean_llama`: the forward pass of Llama-shaped models, with little overhead around those products.

Invariant: nothing here does anything when a GPU serves. Only `launch_settings` and `cpu_plugin` are imported there.
"""

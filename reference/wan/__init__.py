"""Wan2.1 (t2v, i2v, flf2v) as its authors define it, in plain torch: specification of wan, part A.

| module | part of A | content |
| --- | --- | --- |
| `config` | A1, A10-A12 | frozen configurations, the real ones by name |
| `precision`, `norms` | A8 | float32 regions under autocast, the norms |
| `rope` | A5 | 3-axis rotary tables and their application |
| `embeddings`, `attention`, `dit` | A2-A7 | the diffusion transformer |
| `vae_cache`, `vae_layers`, `vae` | A10 | causal 3D VAE, its feature cache and chunks |
| `t5`, `text` | A11 | UMT5 encoder, prompts to context |
| `clip` | A12 | CLIP vision tower and its preprocessing |
| `solvers` | A13 | UniPC, DPM-Solver++, Euler |
| `conditioning`, `pipeline` | A14 | sizes, masks, condition video, the three pipelines |
| `loading` | - | strict loading from safetensors |
| `quirks` | - | official oddities that are kept, with the reason, and what is not reproduced (A9) |
"""

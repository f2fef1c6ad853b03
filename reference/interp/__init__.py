"""Interpolated diffusion, phase 2: keyframes and an interpolation refiner, as its specification defines it, in plain torch.

Written for reading: one sample, one pair of keyframes, one window at a time. Every random number comes from a `Draws`.

| module | specification | content |
| --- | --- | --- |
| `draws` | 6.3 | the source of random numbers: two generators, or recorded draws |
| `patches` | 2 | latents to tokens and back |
| `schedules`, `masks` | 3 | numbers of keyframes, base keyframes, nested masks |
| `temporal` | 4 | interpolation along time, distance weight |
| `warping`, `flow`, `straighten` | 5, 5.1-5.3 | warp, flow and residual interpolators, straighteners |
| `matching`, `motion`, `sinkhorn` | 5.4 | local matching, global motion, the Sinkhorn warp interpolator |
| `corruption` | 6 | the forward process at a level, and at a level and the next finer one |
| `conditioning` | 7 | annealing, mask channels, frame features and tokens |
| `film`, `denoisers`, `selector` | 8.1-8.3, 3.4 | FiLM transformer, toy and token refiners, keypoint models, learned selector |
| `rope`, `sla`, `wan`, `lora` | 8.4-8.6 | Wan transformer with absolute time, sparse-linear attention, LoRA |
| `training` | 9 | loss, step, moving average |
| `sampling`, `keypoints` | 10 | the multi-level refinement, DDIM for phase-1 keyframes |
| `quirks` | 14 | upstream behaviour that differs from what the specification calls right |
"""

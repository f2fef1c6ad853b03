"""Interpolated diffusion, phase 2, as it is run: batched masks, gathered interpolation, windowed matching in one product.

Public functions take the arguments that the specification names; state-dict keys are those of its checkpoints. The Wan
transformer is diffusers' (`wan`).

| module | content |
| --- | --- |
| `draws`, `patches`, `schedules`, `masks` | random numbers, tokens, keyframes as tensors over batch and level |
| `temporal`, `warping`, `flow`, `straighten`, `motion`, `matching`, `sinkhorn` | interpolators over all gaps at once |
| `corruption`, `replacement`, `conditioning` | the forward process by level, what the refiner is told |
| `film`, `denoisers`, `selector`, `rope`, `sla`, `wan`, `lora`, `refiners` | networks |
| `training`, `sampling`, `keypoints`, `toy_data` | learning, refinement, data |
| `toy_training`, `storyboard` | a short run on toy data; `python -m ported.interp`: keyframes to a clip |
| `faults`, `variations` | real bugs as switches; changes that a right port may make |
"""

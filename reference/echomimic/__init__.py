"""EchoMimicV2 as its authors define it, in plain torch: specification of echomimic, sections 1 to 9 and 11.

| module | section | content |
| --- | --- | --- |
| `config` | 1 | frozen configurations, the real ones by name, the two variants |
| `layers`, `transformer`, `motion`, `unet` | 2, 3, 4.1, 4.3, 5 | both UNets |
| `control` | 4.2 | banks of the reference network for the denoiser |
| `pose_encoder`, `pose_maps` | 6.1, 6.2 | hand poses: drawing, canvas, features |
| `audio`, `whisper` | 6.3 | audio file to features of every frame |
| `image`, `vae` | 6.4, 6.5 | reference picture, image VAE |
| `scheduler` | 7 | DDIM with v-prediction and zero terminal SNR |
| `windows`, `pipeline` | 8 | context windows, standard and accelerated pipeline |
| `frames` | 8.1 | bytes, mp4, sound |
| `int8` | 9, 11 | INT8 weight-only quantisation |
| `loading` | 1.2 | strict loading from safetensors |
| `quirks` | - | official oddities that are kept, with the reason, and what is not reproduced |
"""

"""Multi-keyframe long video with Wan2.1 FLF2V, as its authors define it, in plain torch: specification of multikeyframe.

| module | section | content |
| --- | --- | --- |
| `rules` | 8, 10 | what upstream does and what the invariants ask for: one field a difference |
| `config` | 1.1 | the run's configuration and its checks |
| `keyframes` | 1.2 | keyframes, their frame numbers and checks |
| `plan` | 1.3, 1.4, 5 | segments, suggestions, junctions, seeds |
| `command` | 2.3 | the command line of upstream's model script |
| `generator` | 2.1, 2.2, 2.4 | segment files, progress, resume, sequentially |
| `segment` | 7 | one FLF2V segment in tensors, by `reference.wan` |
| `stitching`, `smoothing` | 3, 4 | joining frames, smoothing the joints |
| `video` | 3 | frames to and from files (PyAV) |
| `models`, `pipeline` | 5, 8 | networks of a checkpoint folder; keyframes to video |
| `options` | 6 | command line and YAML merged |

One process, one segment after the other, frames kept as tensors, segments stored without loss.
"""

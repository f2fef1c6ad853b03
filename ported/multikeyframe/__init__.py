"""Long videos from keyframes with Wan2.1 FLF2V, as people run it: segments in parallel workers, resumable at any point.

Every segment is made by diffusers' pipeline (`ported.wan`) in a worker process (`concurrent.futures`, or Ray), stored
losslessly, and noted in `progress.json`; the parent joins and smooths what is there. Nothing heavy is imported until a
segment has to be made: the checks, and a run whose segments are all finished, start at once.

| module | content |
| --- | --- |
| `errors` | bad input (status 2) and failed generation (status 1) |
| `settings`, `cli` | options from code, YAML and command line |
| `pictures`, `plan` | keyframe files, their checks, segments |
| `store` | the folder of segments: lock, fingerprints, progress |
| `worker`, `checkpoint` | one segment with diffusers; a checkpoint folder |
| `engines` | serial, process pool, Ray |
| `joints`, `film` | joining and smoothing frames; video files |
| `pipeline` | the run, and the Python API |
| `tiny` | a tiny random checkpoint, to try everything on a CPU |

`python -m ported.multikeyframe --config video.yaml`
"""

"""EchoMimicV2 as a third-party server runs it: the accelerated pipeline on diffusers' blocks, corrected (spec 10, 11).

| module | content |
| --- | --- |
| `settings` | configurations, a request's settings and limits, the server's states A and B |
| `blocks`, `networks` | both UNets and the pose encoder on rows of frames; VAE, solver and picture processing are diffusers' |
| `sound`, `poses`, `windows` | audio features, hand poses with validation, context windows |
| `build` | strict loading; all networks together |
| `quantise` | INT8 weight-only quantisation, safe by default |
| `nonfinite` | the first operation that made a value which is not finite |
| `pipeline` | `animate`: one request from inputs to frames |
| `files` | frames to mp4 with sound, and reading back what was written |
| `faults`, `variations` | real bugs as switches; changes that a right port may make |
"""

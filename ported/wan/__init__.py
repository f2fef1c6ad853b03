"""Wan2.1 as people port it: Hugging Face diffusers and transformers, driven by thin adapters (spec Part B).

Nothing the libraries provide is written again here: models are `WanTransformer3DModel`, `AutoencoderKLWan`,
`UMT5EncoderModel` and `CLIPVisionModel`; the loop is `WanPipeline.__call__` / `WanImageToVideoPipeline.__call__`; the
solvers are diffusers' schedulers. The adapters convert official keys and configurations, feed official inputs, and
put the official tables and picture preparation where the libraries' own differ by design (spec B4).

Written against diffusers 0.42.1, transformers 5.23.0 (the newest released when this was written) and torch 2.13.
"""

import sys

from transformers import CLIPImageProcessorPil
from transformers.utils import is_torchvision_available

# Without torchvision transformers gives this class for the old name, which diffusers imports, with a warning: give it without.
if not is_torchvision_available():
    vars(sys.modules["transformers"])["CLIPImageProcessor"] = CLIPImageProcessorPil

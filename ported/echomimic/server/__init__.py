"""The API server: uploads in, jobs in the background, clips out (spec 10, corrected).

python -m ported.echomimic.server --tiny --poses DIR        # random weights, to try it
python -m ported.echomimic.server --models DIR --poses DIR  # real weights, as safetensors
"""

from ported.echomimic.server.app import create_app
from ported.echomimic.server.service import Service, ServiceLimits

__all__ = ["Service", "ServiceLimits", "create_app"]

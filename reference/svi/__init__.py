"""SVI continuation with an end frame as ComfyUI-WanVideoWrapper computes it (spec system 5, sections 1-5).

Everything around the Wan VAE and transformer of `reference.wan`: pictures become pixels, pixels and masks become the 20
condition channels, latents are cut and decoded. Precision: pixels and latents float32, the mask in the VAE's dtype.
"""

"""SVI continuation with an end frame as Headless-Wan2GP does it (spec system 5, sections 6 to 9).

The networks are diffusers' (`ported.wan`); what is written here is what the port puts around them: the definition that
switches a model into SVI mode, window accounting, the conditioning block, the Euler loop, trims, and segments.

`versions.RIGHT` is the port as its contract says; the snapshots of its history, which the goldens hold, differ from it
in the fields of `versions.Version`.
"""

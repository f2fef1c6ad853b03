"""How much is read from outside, in one place. docs/SECURITY.md lists these with their reasons; a test keeps the two alike."""

from __future__ import annotations

LINE = 300  # characters of an error message: one line that a terminal and a log can hold
NAME = 4_000  # characters of a site, a module, a key: the longest of real models have about 200
TEXT = 100_000  # characters of any other text in JSON: a listing of versions, a line of code
DEPTH = 40  # nesting of JSON and YAML: a result nests 6 deep
ITEMS = 20_000_000  # values in one JSON document: 60 000 records of a trace hold about 3 million
JSON_BYTES = 512 * 2**20  # of a manifest, a result, the records of a shard
INTEGER = 2**63 - 1  # what a tensor, a file and a page can hold as a whole number
AXES = 64  # of a tensor: torch itself knows no more
MAP_BYTES = 4 * 2**20  # of a name map: 40 000 rules
RULES = 100_000  # of a name map
PATTERN = 2_000  # characters of a regular expression or a template
MATCH_SECONDS = 1.0  # that a regular expression may take on one name
MAP_SECONDS = 5.0  # that the slow matches of one map may take together
PIXELS = 2**26  # of one picture: 8192 x 8192
CLIP_BYTES = 4 * 2**30  # of decoded frames, which are held in memory
CLIP_FRAMES = 100_000  # of a clip: an hour at 25 frames a second
SIDE = 32_768  # pixels of a side of a picture

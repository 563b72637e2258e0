"""One module per training set; each turns the original files into conversations (docs/protocol.md, Training data).

A reader is a function `read(files, tally, **settings) -> Iterator[Conversation]`. A dataset's config names it as
`reader._target_` and holds its settings. `files` are the paths of each role in the config's `source.files`. A reader
leaves broken rows out and counts them in `tally`.
"""

VERSION = 1  # of the prepared data; raise it when a change of code alters what is prepared from the same files

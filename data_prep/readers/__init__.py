"""One module per training set: original files -> `{"dataset", "id", "messages"}` rows of one question and one reply.

A reader is `read(files, tally, **settings) -> Iterator[Row]`; a dataset's config names it as `reader._target_`.
`files` are the paths of each role in the config's `source.files`; broken rows are counted in `tally` and left out.
"""

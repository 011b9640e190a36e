"""`vlkv adopt`: converts a decoder that another exporter wrote into a graph directory of vlkv.

`folder` reads the files beside the graph, `forms` recognise its attention, `decoder` replaces it by vlkv's, `check`
compares the result with the original, and `directory` writes it.
"""

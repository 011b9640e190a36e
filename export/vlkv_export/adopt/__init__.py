"""`vlkv adopt`: a decoder that another exporter wrote becomes a graph directory of vlkv's.

`folder` reads what lies beside the graph, `forms` recognise its attention, `decoder` puts ours in their place, `check`
compares the result with the original, and `directory` writes it.
"""

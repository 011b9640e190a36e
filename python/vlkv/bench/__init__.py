"""`vlkv bench`: latency of an engine, full cache and compressed, beside its byte floor and beside other programs."""

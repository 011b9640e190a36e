"""vlkv: vision-language models with a tenth of the KV cache."""

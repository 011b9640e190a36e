"""An HTTP server that speaks OpenAI's API: `vlkv serve ENGINE`."""

"""An HTTP server with OpenAI's API: `vlkv serve ENGINE`."""

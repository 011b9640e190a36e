"""Programs that `vlkv bench` runs in environments of their own. Nothing imports them; they import nothing of vlkv."""

"""Programs that `vlkv bench` runs in separate environments. Nothing imports them; they import nothing of vlkv."""

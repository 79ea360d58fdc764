"""The demo: a small world of true facts, a corpus that states them, a tiny model that learns them."""

"""GET, LIST and WATCH: answers from the cache's bytes."""

"""irlab's own passes, each found through an entry point."""

"""Weight versions on their way out: copied between two steps, made ready and served while the next ones train."""

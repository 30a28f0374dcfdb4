"""Weight versions on their way in: fetched and verified in a thread; sampling stops for the swap alone."""

"""The report of a run: plots as PNG and one HTML page that needs nothing but itself."""

"""One module per topic; each makes the cases of one JSON file."""

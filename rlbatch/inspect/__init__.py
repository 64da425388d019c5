"""Reading episode logs: tables and summaries."""

"""The report page of a run: its files read, its charts laid out, its templates."""

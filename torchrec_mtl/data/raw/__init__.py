"""What the preparations of raw logs share: reading files in blocks of lines, bad rows, warnings, the report."""

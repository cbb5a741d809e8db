"""What the readers of raw logs share: opening files, cutting them into blocks of lines, dealing with bad rows."""

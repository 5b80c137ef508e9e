"""What Import/Export puts on and learns from drives, as bytes: the drive manifest and the copy logs. No I/O here."""

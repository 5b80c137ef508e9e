"""View: the sources as they were at one moment, read from snapshots of their file systems under their own paths."""

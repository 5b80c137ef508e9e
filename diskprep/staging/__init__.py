"""Staging: from sources to a sealed directory that a copy computer can carry on with; and incremental backups."""

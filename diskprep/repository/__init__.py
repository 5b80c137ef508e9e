"""The restic repository format, version 2: bytes only. It knows no disk, no cloud, no terminal."""

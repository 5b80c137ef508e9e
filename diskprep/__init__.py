"""diskprep: offline seeding of a first full backup, from a source folder to a vault, with disks in between."""

__version__ = "0.1.0"

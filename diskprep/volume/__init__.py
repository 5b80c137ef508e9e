"""What lies on a disk, as bytes: GPT, a BitLocker volume, the NTFS inside. Knows no repository, no job, no terminal."""

"""`python -m diskprep` is `diskprep`."""

from diskprep.cli import main

if __name__ == "__main__":
    main()

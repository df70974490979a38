"""`python -m undiffuse` runs the command `undiffuse`."""

from undiffuse.cli.app import main

if __name__ == "__main__":
    main()

"""`python -m gradlab` is the `gradlab` command."""

from gradlab.cli import main

if __name__ == "__main__":
    main()

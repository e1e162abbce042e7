"""`python -m emberfs` is the command line."""

from .deploy.cli.main import main

if __name__ == "__main__":
    main()

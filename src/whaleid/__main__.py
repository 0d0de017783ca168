"""`python -m whaleid`: the same as the `whaleid` command."""

from whaleid.cli.main import main

if __name__ == "__main__":
    main()

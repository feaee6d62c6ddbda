"""`python -m sparkwright` is the same command as `sparkwright`."""

from sparkwright.cli import main

if __name__ == "__main__":
    main()

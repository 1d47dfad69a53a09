"""`python -m diptych` is `diptych`."""

from diptych.cli.main import main

if __name__ == "__main__":
    main()

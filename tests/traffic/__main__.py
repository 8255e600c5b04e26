"""`python -m tests.traffic`: the command line of :mod:`tests.traffic.driver`."""

from tests.traffic.driver import main

if __name__ == "__main__":
    main()

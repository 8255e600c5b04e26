"""`python -m aurora_runtime.validation`."""

from aurora_runtime.validation.main import main

if __name__ == "__main__":
    main()

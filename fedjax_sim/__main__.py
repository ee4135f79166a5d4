"""`python -m fedjax_sim` is `fedjax-sim`."""

from fedjax_sim.cli.main import main

if __name__ == "__main__":
    main()

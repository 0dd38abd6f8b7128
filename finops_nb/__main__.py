"""`python -m finops_nb` is `finops-nb`."""
from finops_nb.cli import main

main(prog_name="finops-nb")

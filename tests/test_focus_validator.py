"""The invented FOCUS files against the FOCUS Foundation's own validator, which needs a Python of its own.

focus-validator 2.2.1 wants Python 3.12 or later and pyarrow below 22, so it can not live in this environment:

    python3.12 -m venv focus
    focus/bin/pip install 'focus-validator==2.2.1' 'pyarrow<22'
    FINOPS_FOCUS_VALIDATOR=$PWD/focus/bin/python pytest tests/test_focus_validator.py
"""

import gzip
import os
import re
import subprocess

import pytest

from finops_nb.estate_bill import bill_lines
from finops_nb.estate_bill_files import write_focus
from finops_nb.estate_meters import sample_resources

PYTHON = os.environ.get('FINOPS_FOCUS_VALIDATOR', '')
needs_validator = pytest.mark.skipif(
    not PYTHON,
    reason="FINOPS_FOCUS_VALIDATOR names no Python >= 3.12 with focus-validator 2.2.1 and pyarrow<22; "
    'the docstring of tests/test_focus_validator.py says how to make one',
)

# Rules of model 1.2.0.1 that these files fail, and why that is right. Anything else is a fault of ours.
ALLOWED = {
    'BilledCost-C-005-C': 'takes any issuer that is not called like the provider for a third party; the issuer is '
    'Amazon Web Services EMEA SARL and the provider AWS, as in the FOCUS sample',
    'BillingAccountId-C-002-M': "the validator's CSV loader reads twelve digits as a number",
    'SubAccountId-C-001-M': "the validator's CSV loader reads twelve digits as a number",
    'CapacityReservationStatus-C-004-C': "the model's condition has no CheckFunction and is not applied: nothing here "
    'has a capacity reservation',
    'CommitmentDiscountStatus-C-004-C': "the model's condition is the opposite of its words: it counts the rows "
    'without a commitment',
    'EffectiveCost-C-005-C': 'holds for any purchase; a support fee and a software contract cover no future charges',
    'InvoiceId-C-004-C': 'has no condition: every row with an invoice fails',
    'InvoiceId-C-005-C': 'has no condition: every row of the open month fails',
    'ServiceName-C-005-C': 'AWS files EBS volumes under EC2 with category Storage (FOCUS sample)',
    'ServiceName-C-008-C': 'the same, one level deeper',
}


def run(*args, cwd=None):
    return subprocess.run([PYTHON, *args], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def verdicts(tmp_path_factory):
    "Rule -> (PASS, FAIL or SKIPPED, message), for August to November of the customer who has everything"
    folder = tmp_path_factory.mktemp('focus')
    months = [gzip.decompress(p.read_bytes()) for p in write_focus(bill_lines('acme', sample_resources()), folder)]
    path = folder / 'bill.csv'
    path.write_bytes(months[0] + b''.join(m.partition(b'\n')[2] for m in months[1:]))
    home = run('-c', 'import focus_validator, pathlib; print(pathlib.Path(focus_validator.__file__).parents[1])')
    assert home.returncode == 0, f'{PYTHON} has no focus_validator: {home.stderr}'
    done = run(
        *('-m', 'focus_validator.main', '--block-download', '--validate-version', '1.2'),
        *('--focus-dataset', 'CostAndUsage', '--applicability-criteria', 'ALL', '--data-file', str(path)),
        cwd=home.stdout.strip(),  # it opens currency_codes.csv by a relative path
    )
    found = re.findall(r'^\S+ (\S+): (PASS|FAIL|SKIPPED)\b(.*)$', done.stdout + done.stderr, re.M)
    assert found, (done.stdout + done.stderr)[-3000:]
    return {rule: (verdict, message) for rule, verdict, message in found}


@needs_validator
def test_the_validator_finds_nothing_but_what_is_explained(verdicts):
    failed = {rule: message for rule, (verdict, message) in verdicts.items() if verdict == 'FAIL'}
    own = {rule: message for rule, message in failed.items() if not re.search('child rules( failed)?:', message)}
    assert {rule: message for rule, message in own.items() if rule not in ALLOWED} == {}
    for rule, message in failed.items():  # a rule made of others fails because of those, and those are explained
        children = re.search(r'failed child rules: \[(.*?)\]', message)
        assert not children or set(children[1].split(', ')) <= failed.keys(), rule


@needs_validator
def test_the_validator_looked_at_the_rules(verdicts):
    assert sum(verdict == 'PASS' for verdict, _ in verdicts.values()) >= 300
    assert verdicts['ListCost-C-009-C'][0] == 'PASS'  # unit price x quantity
    assert verdicts['CommitmentDiscountQuantity-C-005-C'][0] == 'PASS'

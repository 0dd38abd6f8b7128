"""The product as a newcomer meets it: the demo, run once by the command line, and everything that follows from it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import duckdb
import pytest

from finops_nb.demo import emulated_estate, is_demo
from finops_nb.estate import ACCOUNTS, AS_OF, EXPECTED
from finops_nb.estate_bill import commitment_arns
from finops_nb.estate_bill_tables import EXPECTED_BILL, OTHERS
from finops_nb.estate_meters import made_id
from finops_nb.settings import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CLOCK = f'{AS_OF:%Y-%m-%dT%H:%M:%SZ}'
HOMES = list(EXPECTED)


def finops_nb(folder, *args, code=None, **env):
    "The command line in a folder, without any AWS to talk to unless the environment names one"
    nowhere = {
        'AWS_ENDPOINT_URL': 'http://127.0.0.1:9',
        'AWS_ACCESS_KEY_ID': 'x',
        'AWS_SECRET_ACCESS_KEY': 'secret-of-the-operator',
        'AWS_MAX_ATTEMPTS': '1',
    }
    done = subprocess.run(
        [sys.executable, '-m', 'finops_nb', *args],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | nowhere | env,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder in which the demo has run"
    folder = tmp_path_factory.mktemp('demo')
    done = finops_nb(folder, 'demo', '--no-serve', code=0)
    assert 'emulated' in done.stdout
    return folder


@pytest.fixture
def copy(world, tmp_path):
    "A copy of it that a test may change"
    shutil.copytree(world, tmp_path / 'w', symlinks=True)
    return tmp_path / 'w'


@pytest.fixture(scope='module')
def names():
    "Resource id -> name in the estate"
    with emulated_estate() as aws:
        return dict(aws.names)


def manifest(folder, tenant, workspace):
    found = [
        json.loads(p.read_text()) for p in (folder / 'data' / 'finops_runs' / f'tenant_id={tenant}').glob('*.json')
    ]
    return next(m for m in found if m['workspace_id'] == workspace)


def exported(folder, tenant, name):
    return json.loads((folder / 'webapp_data' / tenant / name).read_text())


def hashes(folder, *patterns):
    return {
        p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest()
        for pattern in patterns
        for p in folder.glob(pattern)
        if p.is_file()
    }


def check_again(folder, spec, as_of, *more):
    "One check over the snapshot that the demo took of acme/prod"
    command = f'run --tenant acme --workspace prod --checker {spec} --as-of {as_of} --snapshot'.split()
    return finops_nb(folder, *command, manifest(folder, 'acme', 'prod')['run_id'], *more, code=0)


@pytest.mark.parametrize('home', HOMES, ids='/'.join)
def test_every_check_finds_what_the_estate_hides_and_nothing_else(world, names, home):
    m = manifest(world, *home)
    files = [str(world / 'data' / 'finops_findings' / f['path']) for f in m['files']]
    rows = duckdb.sql(
        "select check_id, scope.resource_id from read_parquet($f) where status = 'fail'", params={'f': files}
    ).fetchall()
    found = defaultdict(set)
    rows = [(c, r) for c, r in rows if c not in EXPECTED_BILL[home]]
    for check_id, resource_id in rows:
        found[check_id].add(names.get(resource_id, resource_id))
    assert {c: found.get(c, set()) for c in EXPECTED[home]} == EXPECTED[home]
    assert not found.keys() - EXPECTED[home].keys()
    assert len(rows) == sum(map(len, EXPECTED[home].values()))  # no resource twice for one check


def called(names, finding):
    "What the estate may call the subject of a finding: by its name, or by account, region and noun"
    account = {a['account_id']: a['account'] for a in ACCOUNTS}[finding['account_id']]
    own = finding['resource_id']
    made = {made_id(row['prefix'], row['name']): row['name'] for row in OTHERS if row.get('prefix')}
    known = commitment_arns() | made | names
    tails = [own.rpartition(mark)[2] for mark in (':', '/', 'loadbalancer/')]
    ids = [own, finding['resource_arn'], *tails]
    return {account, f'{account}/{own}', f'{account}/{finding["region"]}/{own}', *tails} | {known.get(i) for i in ids}


@pytest.mark.parametrize('home', HOMES, ids='/'.join)
def test_every_check_of_the_bill_finds_what_the_bill_hides_and_nothing_else(world, names, home):
    files = [str(world / 'data' / 'finops_findings' / f['path']) for f in manifest(world, *home)['files']]
    rows = duckdb.sql(
        """select check_id, scope.account_id, scope.region, scope.resource_id, scope.resource_arn
        from read_parquet($f) where status in ('fail', 'info')""",
        params={'f': files},
    ).to_arrow_table()
    for check_id, expected in EXPECTED_BILL[home].items():
        left = set(expected)
        for finding in (r for r in rows.to_pylist() if r['check_id'] == check_id):
            found = called(names, finding) & left
            assert len(found) == 1, (check_id, finding)
            left -= found
        assert not left, check_id


@pytest.mark.parametrize('tenant', ['acme', 'globex'])
def test_the_bill_agrees_with_its_source_and_every_cent_has_its_place(world, tenant):
    bill = exported(world, tenant, 'summary.json')['bill']
    assert len({p['billing_period'] for p in bill['periods']}) == 4
    assert all(abs(Decimal(p['difference'])) < Decimal('0.01') for p in bill['periods'])
    for rows in (bill['totals'], bill['by_service'], bill['by_account']):
        for r in rows:
            parts = [k for k in r if k not in ('key', 'currency', 'total', 'unknown_charges')]
            assert sum(Decimal(r[k]) for k in parts) == Decimal(r['total'])
        assert sum(Decimal(r['total']) for r in rows) == Decimal(bill['totals'][0]['total'])
    charges = world / 'data' / 'charges' / f'tenant_id={tenant}' / '*' / '*.parquet'
    (billed,) = duckdb.sql(  # of a month of tax or support, the part that lies in the window
        """select sum(effective_cost * (epoch(least(charge_period_end, $e)) - epoch(greatest(charge_period_start, $s)))
                      / (epoch(charge_period_end) - epoch(charge_period_start)))::decimal(18, 6)
        from read_parquet($f, hive_partitioning = false)
        where charge_period_end > $s::timestamptz and charge_period_start < $e::timestamptz""",
        params=dict(f=str(charges), s=bill['window_start'] + 'T00:00Z', e=bill['window_end'] + 'T00:00Z'),
    ).fetchall()[0]
    assert abs(billed - Decimal(bill['totals'][0]['total'])) < Decimal('0.01')


def test_findings_carry_what_their_resource_really_cost(world):
    findings = exported(world, 'acme', 'findings.json')['findings']
    exact = [f for f in findings if f['actual']['attribution']['method'] == 'exact_resource_id']
    assert len(exact) > 90
    for f in exact:
        cost, saving = f['actual']['cost_30d'], f['estimated']['monthly_savings']
        assert cost is not None and f['actual']['model']['currency'] == 'USD'
        if saving is not None and f['status'] == 'fail':
            assert Decimal(saving) <= Decimal(f['estimated']['monthly_cost'])
    evidence = duckdb.sql(
        'select fingerprint, sum(effective_cost) as cost from read_parquet($f) group by 1',
        params={'f': str(world / 'data' / 'cost_attribution' / 'tenant_id=acme' / '*.parquet')},
    ).fetchall()
    assert {f['fingerprint'] for f in exact} <= {fingerprint for fingerprint, _ in evidence}


def test_no_tenant_sees_anothers_bill(world):
    for tenant, foreign in (('acme', '444455556666'), ('globex', '111122223333')):
        for folder in ('charges', 'cost_attribution', 'bill_coverage', 'prices'):
            for path in (world / 'data' / folder / f'tenant_id={tenant}').rglob('*.parquet'):
                assert foreign.encode() not in path.read_bytes()
        assert foreign not in (world / 'webapp_data' / tenant / 'summary.json').read_text()


def test_a_refused_call_is_a_gap_an_unknown_check_and_said_in_the_export(world):
    for tenant, workspace, operation, check_id in (
        ('acme', 'dev', 'rds:DescribeDBInstances', 'aws.rds.instance_idle'),
        ('globex', 'main', 'ec2:DescribeSnapshots', 'aws.ebs.snapshot_old'),
    ):
        (gap,) = manifest(world, tenant, workspace)['gaps']
        assert gap['operation'] == operation and gap['status'] == 'denied' and check_id in gap['checks']
        assert [g['operation'] for g in exported(world, tenant, 'summary.json')['gaps']] == [operation]
        unknown = [
            f
            for f in exported(world, tenant, 'findings.json')['findings']
            if f['status'] == 'unknown' and not f['scope']['resource_id']
        ]
        assert {f['check_id'] for f in unknown} == set(gap['checks'])
        assert all(f['estimated']['monthly_savings'] is None and f['scope']['region'] == gap['region'] for f in unknown)


@pytest.mark.parametrize('tenant', ['acme', 'globex'])
def test_totals_are_those_of_groups_recomputed_by_hand(world, tenant):
    findings = exported(world, tenant, 'findings.json')['findings']
    largest = defaultdict(Decimal)
    for f in findings:
        if f['status'] == 'fail' and f['estimated']['monthly_savings']:
            largest[f['group_id']] = max(largest[f['group_id']], Decimal(f['estimated']['monthly_savings']))
    (total,) = exported(world, tenant, 'summary.json')['totals']
    assert Decimal(total['monthly_savings']) == sum(largest.values())
    assert Decimal(total['monthly_savings']) < Decimal(
        total['sum_of_findings']
    )  # something excludes something in the estate
    for by in ('by_service', 'by_account', 'by_region', 'by_check', 'by_category', 'by_severity', 'by_workspace'):
        rows = exported(world, tenant, 'summary.json')[by]
        assert sum(Decimal(r['monthly_savings'] or 0) for r in rows) == Decimal(total['monthly_savings']), by
        assert (
            sum(r['findings'] for r in rows) == total['findings']
            and sum(r['unestimated'] for r in rows) == total['unestimated']
        )
    top = exported(world, tenant, 'top_savings.json')['findings']
    assert [f['fingerprint'] for f in top] == [
        f['fingerprint']
        for f in findings
        if f['is_group_winner'] and Decimal(f['estimated']['monthly_savings'] or 0) > 0
    ][:50]


def test_no_saving_is_above_its_cost_and_no_unknown_is_zero(world):
    for tenant in ('acme', 'globex'):
        for f in exported(world, tenant, 'findings.json')['findings']:
            e = f['estimated']
            if e['monthly_savings'] is None:
                assert e['basis'] == 'none'
            elif e['monthly_cost'] is not None:
                assert Decimal(e['monthly_savings']) <= Decimal(e['monthly_cost'])


def test_the_same_run_again_without_aws_gives_the_same_bytes(copy):
    patterns = 'data/finops_findings/**/*.parquet', 'webapp_data/*/*.json', 'webapp_data/*/exports/*/*'
    before = hashes(copy, *patterns)
    for tenant, workspace in HOMES:
        finops_nb(copy, 'run', '--tenant', tenant, '--workspace', workspace, '--as-of', CLOCK)
    assert hashes(copy, *patterns) == before
    assert duckdb.sql(
        f"select count(*) = count(distinct finding_id) from read_parquet('{copy}/data/finops_findings/**/*.parquet')"
    ).fetchall() == [(True,)]


def test_the_first_sketch_works_as_written(copy):
    "DESIGN.md section 8: one check by its spec, then the export from Python"
    spec = 'checks.aws.ec2_graviton:EC2GravitonChecker'
    done = check_again(copy, spec, '2026-11-25T06:00:00Z', '--out', 'data/finops_findings')
    assert 'findings, 0 rejects, 0 gaps' in done.stdout
    code = (
        'from finops_nb.export_json import ExportConfig, run_export\n'
        "run_export(ExportConfig(findings_glob='data/finops_findings/**/*.parquet', tenant_id='acme', "
        "out_dir='webapp_data'))"
    )
    subprocess.run([sys.executable, '-c', code], cwd=copy, check=True)
    findings = exported(copy, 'acme', 'findings.json')['findings']
    prod = {f['check_id'] for f in findings if f['workspace_id'] == 'prod'}
    assert prod == {'aws.ec2.graviton'}  # the newest run of prod evaluated one check
    assert {f['check_id'] for f in findings if f['workspace_id'] == 'dev'} > {'aws.ec2.graviton'}  # dev is as it was


def test_one_tenant_that_fails_touches_no_other(copy):
    (copy / 'settings.ini').write_text(
        (copy / 'settings.ini').read_text()
        + '\n[tenant:initech]\n[workspace:initech/main]\naccounts = 999900001111\nrole = none\n'
        '[check:initech/aws.ebs.volume_unattached]\nmin_dayz = 3\n'
    )
    before = hashes(copy, 'data/finops_findings/**/*.parquet')
    done = finops_nb(copy, 'run', '--all', '--as-of', CLOCK, code=1)
    assert "initech/main: Check aws.ebs.volume_unattached has no parameter 'min_dayz'" in done.stdout
    assert '4 runs, 1 complete, 3 with gaps, rejects or errors' in done.stdout
    assert hashes(copy, 'data/finops_findings/**/*.parquet') == before


def test_a_check_of_ones_own_runs_beside_ours(copy):
    (copy / 'my_checks.py').write_text("""
from finops_nb.contracts import FindingDraft, Scope
class Everything:
    checker_id = 'my.first.check'
    def run(self, ctx):
        for account, region, name in ctx.db.sql('select account_id, region, resource_id from s3_buckets').fetchall():
            scope = Scope(account, region, 'AmazonS3', 's3_bucket', name)
            yield FindingDraft(self.checker_id, f'{name} exists', 'governance', scope)
""")
    done = check_again(copy, 'my_checks:Everything', '2026-11-26T06:00:00Z')
    assert not done.stdout.startswith('0 findings')


WORDS = {
    'acme': ['acme', 'Acme', '111122223333', '222233334444', '333344445555'],
    'globex': ['globex', 'Globex', '444455556666', '555566667777'],
}


def contents(path):
    "A file as text: rows of Parquet, unpacked gzip, what the cells of a notebook show"
    if path.suffix == '.parquet':
        return str(duckdb.sql('from read_parquet($f)', params={'f': str(path)}).to_arrow_table().to_pylist())
    if path.suffix == '.ipynb':  # its source names the demo tenant as a default
        return json.dumps([c.get('outputs') for c in json.loads(path.read_text())['cells']])
    return (gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()).decode()


@pytest.mark.parametrize(('tenant', 'other'), [('acme', 'globex'), ('globex', 'acme')])
def test_nothing_of_one_tenant_is_in_what_belongs_to_the_other(world, tenant, other):
    folders = [world / 'webapp_data' / tenant, world / 'runs' / tenant, *(world / 'data').glob(f'*/tenant_id={tenant}')]
    files = [p for f in folders for p in f.rglob('*') if p.is_file() and p.name != '.lock']
    assert len(files) > 20
    for p in files:
        text = contents(p)
        assert not [w for w in WORDS[other] if w in text], p
        assert p.suffix != '.ipynb' or [w for w in WORDS[tenant] if w in text]  # the test sees what it looks for


def test_executed_notebooks_are_evidence_and_hold_no_secret(world):
    notebooks = list((world / 'runs').rglob('*.ipynb'))
    assert len(notebooks) == 3
    for p in notebooks:
        nb = json.loads(p.read_text())
        assert {json.loads(f.read_text())['run_id'] for f in (world / 'data' / 'finops_runs').rglob('*.json')} >= {
            p.stem
        }
        text = p.read_text()
        assert 'secret-of-the-operator' not in text and 'AWS_SECRET' not in text
        assert [c for c in nb['cells'] if 'injected-parameters' in c['metadata'].get('tags', [])]
        outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
        assert not [o for o in outputs if o['output_type'] == 'error'] and any(
            'image/png' in o.get('data', {}) for o in outputs
        )


def test_wrong_commands_end_with_status_2_and_one_line(world):
    for args in (
        ['run'],
        ['run', '--tenant', 'initech'],
        ['run', '--tenant', 'acme'],
        ['run', '--tenant', 'globex', '--snapshot', '../acme/x'],
        ['run', '--tenant', 'globex', '--snapshot', 'no-such-run'],
        ['run', '--tenant', 'globex', '--as-of', 'soon'],
    ):
        done = finops_nb(world, *args, '--as-of', CLOCK) if '--as-of' not in args else finops_nb(world, *args)
        assert done.returncode in (1, 2) and 'Traceback' not in done.stderr, (args, done.stderr)


def test_settings_at_the_root_are_the_demos():
    s = load(ROOT / 'settings.ini')
    assert (
        is_demo(s.tenants)
        and [(t, w) for t in s.tenants.values() for w in t.workspaces]
        and {(t.tenant_id, w) for t in s.tenants.values() for w in t.workspaces} == set(EXPECTED)
    )


def test_the_bill_is_loaded_listed_and_removed_by_command(copy):
    again = finops_nb(copy, *'bill load --tenant acme'.split(), code=0).stdout.splitlines()
    assert len(again) == 4 and all('unchanged' in line and 'cur-2.0' in line for line in again)
    listed = finops_nb(copy, *'bill list --tenant acme'.split(), code=0).stdout.splitlines()
    assert len(listed) >= 12 and all(line.endswith('difference 0.00') for line in listed)
    second = finops_nb(copy, *'bill load --tenant acme --export other data/bills/acme'.split(), code=2)
    assert 'it would count twice' in second.stderr
    foreign = finops_nb(copy, *'bill load --tenant acme --export other data/bills/globex'.split(), code=2)
    assert '888877776666' in foreign.stderr and 'globex' not in foreign.stderr.replace('data/bills/globex', '')
    finops_nb(copy, *'bill remove --tenant acme --export bill --period 2026-08'.split(), code=0)
    left = finops_nb(copy, *'bill list --tenant acme'.split(), code=0).stdout
    assert '2026-08' not in left and '2026-09' in left

"""A tenant with a bill, run after run: snapshots by hand, a FOCUS export that grows, everything else as it is."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv

from finops_nb.catalog import TABLES
from finops_nb.inventory import inventory_dir, new_folder, publish, write_table
from finops_nb.runner import (
    Inputs,
    check,
    exit_code,
    finish,
    freeze_prices,
    load_charges,
    match_charges,
    open_tables,
    plan_run,
    realized,
    run_here,
    take_snapshot,
)
from finops_nb.settings import load

PROD, DEV, PAYER, OTHER = '111122223333', '222233334444', '999988887777', '444455556666'
PLACE = dict(region='eu-west-1')
UNATTACHED = 'checks.aws.ebs_volume_unattached:EBSVolumeUnattachedChecker'
ORPHAN = 'checks.aws.bill_orphan_cost:BillOrphanCostChecker'
TAGS = 'checks.aws.bill_untagged_spend:BillUntaggedSpendChecker'
FIRST = datetime(2026, 10, 1, tzinfo=UTC)


def line(account, resource, cost, day, **more):
    start = FIRST + timedelta(day)
    month = start.replace(day=1)
    return dict(
        BillingPeriodStart=f'{month:%Y-%m-%dT00:00:00Z}',
        BillingPeriodEnd=f'{(month + timedelta(32)).replace(day=1):%Y-%m-%dT00:00:00Z}',
        BillingAccountId=PAYER,
        SubAccountId=account,
        ResourceId=resource,
        BillingCurrency='USD',
        ChargeCategory='Usage',
        ChargePeriodStart=f'{start:%Y-%m-%dT00:00:00Z}',
        ChargePeriodEnd=f'{start + timedelta(1):%Y-%m-%dT00:00:00Z}',
        ServiceName='Amazon Elastic Compute Cloud',
        x_ServiceCode='AmazonEC2',
    ) | dict.fromkeys(('BilledCost', 'EffectiveCost', 'ListCost', 'ContractedCost'), cost) | more


def days(account, resource, cost, first, last, **more):
    return [line(account, resource, cost, d, **more) for d in range(first, last)]


@pytest.fixture
def home(tmp_path):
    (tmp_path / 'settings.ini').write_text(f"""
[tenant:acme]
bill = focus
payer_accounts = {PAYER}
[workspace:acme/prod]
accounts = {PROD}
role = none
[workspace:acme/dev]
accounts = {DEV}
role = none
[tenant:globex]
[workspace:globex/main]
accounts = {OTHER}
role = none
""")
    (tmp_path / 'focus').mkdir()
    return tmp_path


def bill(home, lines):
    "The export, one file a month"
    for month in {r['BillingPeriodStart'] for r in lines}:
        rows = [r for r in lines if r['BillingPeriodStart'] == month]
        write_csv(pa.Table.from_pylist(rows), home / 'focus' / f'{month[:7]}.csv')


def plan(home, as_of, workspace='prod', checkers=(UNATTACHED, ORPHAN, TAGS)):
    return plan_run(load(home / 'settings.ini'), 'acme', workspace, as_of, checkers)


def snapshot(p, *volumes):
    "What AWS would have shown: unattached volumes and nothing else, every call answered"
    account = p.workspace.accounts[0].account_id
    rows = [
        PLACE
        | dict(
            account_id=account,
            resource_id=v,
            volume_type='gp3',
            state='available',
            size_gib=100,
            iops=3000,
            throughput_mibps=125,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for v in volumes
    ]
    asked = [
        PLACE | dict(account_id=account, service='ec2', operation='Describe', table_name=t, status='ok')
        for t in TABLES
        if not t.endswith('_prices')
    ]
    data, tables = p.settings.data_dir, {'ebs_volumes': rows, 'coverage': asked}
    with new_folder(inventory_dir(data, 'acme'), p.snapshot_id) as folder:
        files = {}
        for t, r in tables.items():
            part = pa.Table.from_pylist(r, schema=TABLES[t].schema)
            files[t] = write_table(folder / f'{t}.parquet', part.schema, [part])
        publish(
            folder,
            dict(
                tenant_id='acme',
                workspace_id=p.workspace.workspace_id,
                snapshot_id=p.snapshot_id,
                tables=files,
                coverage={'ok': len(asked)},
            ),
        )


def run(home, as_of, *volumes, workspace='prod'):
    p = plan(home, as_of, workspace)
    snapshot(p, *volumes)
    return run_here(p)


def findings(home, manifest):
    files = [home / 'data' / 'finops_findings' / f['path'] for f in manifest['files']]
    rows = [r for f in files for r in pq.read_table(f, partitioning=None).to_pylist()]
    return {(r['check_id'], r['scope']['resource_id']): r for r in rows}


def test_a_finding_takes_cost_and_saving_from_the_bill(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 52))
    found = findings(home, run(home, '2026-11-24T06:00:00Z', 'vol-1', 'vol-2'))
    own, other = found['aws.ebs.volume_unattached', 'vol-1'], found['aws.ebs.volume_unattached', 'vol-2']
    # the 30 days from 25 Oct hold 28 days of the bill (it ends on 21 Nov): 28 x 0.20
    assert own['actual']['cost_30d'] == Decimal('5.6') and own['actual']['cost_prev_month'] == Decimal('6.2')
    assert own['estimated']['monthly_savings'] == Decimal('6.087500')  # 0.20 x 30.4375
    assert own['estimated']['basis'] == 'billed' and own['actual']['attribution']['matched_keys'] == ['vol-1']
    assert other['estimated']['basis'] == 'list' and other['actual']['attribution']['method'] == 'none'
    assert other['actual']['cost_30d'] is None


def test_without_a_bill_the_checks_that_read_it_are_not_run_and_nothing_is_made_up(home):
    ini = home / 'settings.ini'
    ini.write_text(ini.read_text().replace('bill = focus\n', ''))
    m = run(home, '2026-11-24T06:00:00Z', 'vol-1')
    assert [c['check_id'] for c in m['checks']] == ['aws.ebs.volume_unattached']
    assert m['skipped'] == ['aws.bill.orphan_cost', 'aws.bill.untagged_spend'] and m['bill'] is None
    assert exit_code(m) == 0
    (f,) = findings(home, m).values()
    assert f['actual']['cost_30d'] is None and f['estimated']['basis'] == 'list'
    summary = json.loads((home / 'webapp_data' / 'acme' / 'summary.json').read_text())
    assert summary['bill'] is None and summary['runs'][0]['checks_without_bill'] == 2


def test_a_bill_that_breaks_leaves_the_last_one_in_use_and_says_so(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 52))
    run(home, '2026-11-24T06:00:00Z', 'vol-1')
    (home / 'focus' / '2026-11.csv').write_text('not;a;bill\n1;2;3\n')
    m = run(home, '2026-11-25T06:00:00Z', 'vol-1')
    assert 'semicolons' in m['bill_error'] and exit_code(m) == 1
    assert findings(home, m)['aws.ebs.volume_unattached', 'vol-1']['estimated']['basis'] == 'billed'


def test_a_bill_with_another_tenants_account_is_refused_whole(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 52) + [line(OTHER, 'vol-9', 7, 3)])
    m = run(home, '2026-11-24T06:00:00Z', 'vol-1')
    assert 'belongs to another tenant' in m['bill_error'] and 'globex' not in m['bill_error']
    assert not list((home / 'data').glob('charges/tenant_id=acme/billing_period=*/*.parquet'))
    assert m['bill'] is None and len(m['skipped']) == 2


def test_a_bill_of_a_foreign_payer_is_refused(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 52, BillingAccountId='123456789012'))
    m = run(home, '2026-11-24T06:00:00Z', 'vol-1')
    assert '123456789012' in m['bill_error'] and m['bill'] is None


def test_every_charge_belongs_to_one_workspace_and_the_payers_to_the_first(home):
    bill(home, [
        *days(PROD, 'vol-1', 1, 0, 54), *days(DEV, 'vol-2', 2, 0, 54), *days(PAYER, 'vol-3', 4, 0, 54)
    ])  # fmt: skip
    prod = run(home, '2026-11-24T06:00:00Z', 'vol-1')
    dev = run(home, '2026-11-24T06:00:00Z', workspace='dev')
    orphans = [
        {key[1]: r['scope']['account_id'] for key, r in findings(home, m).items() if 'orphan' in key[0]}
        for m in (prod, dev)
    ]
    assert [list(o.values()) for o in orphans] == [[PAYER], [DEV]]
    summary = json.loads((home / 'webapp_data' / 'acme' / 'summary.json').read_text())['bill']
    (total,) = summary['totals']
    assert {k: Decimal(v) for k, v in total.items() if k != 'currency'} == dict(
        total=Decimal(210), with_findings=Decimal(30), without_findings=0, never_seen=Decimal(60), no_resource_id=0,
        no_workspace=Decimal(120), unknown_charges=0)  # fmt: skip


def test_the_same_run_again_gives_the_same_bytes(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 52) + days(PROD, 'i-1', 3, 10, 50))

    def hashes():
        patterns = 'finops_findings', 'cost_attribution', 'bill_coverage', 'charges'
        files = [p for name in patterns for p in sorted((home / 'data' / name).rglob('*.parquet'))]
        web = [home / 'webapp_data' / 'acme' / n for n in ('findings.json', 'summary.json', 'top_savings.json')]
        return {p: sha256(p.read_bytes()).hexdigest() for p in files + web}

    run(home, '2026-11-24T06:00:00Z', 'vol-1')
    before = hashes()
    run_here(plan(home, '2026-11-24T06:00:00Z'))
    assert hashes() == before and len(before) >= 7


def test_a_rewritten_month_changes_the_cost_and_doubles_nothing(home):
    bill(home, days(PROD, 'vol-1', 0.20, 0, 54))
    run(home, '2026-11-24T06:00:00Z', 'vol-1')
    bill(home, days(PROD, 'vol-1', 0.10, 31, 54))  # AWS corrected November
    m = run_here(plan(home, '2026-11-24T06:00:00Z'))
    f = findings(home, m)['aws.ebs.volume_unattached', 'vol-1']
    assert f['actual']['cost_mtd'] == Decimal('2.3')  # 23 x 0.10
    assert f['actual']['cost_prev_month'] == Decimal('6.2')  # 31 x 0.20, as before


def test_what_was_resolved_is_followed_in_the_bill(home):
    "Run one reports two volumes; one is deleted on 20 November; run two no longer finds it, run three knows the worth"
    both = days(PROD, 'vol-1', 0.20, 0, 50) + days(PROD, 'vol-2', 0.30, 0, 53)
    bill(home, both)
    run(home, '2026-11-18T06:00:00Z', 'vol-1', 'vol-2')
    run(home, '2026-11-24T06:00:00Z', 'vol-2')
    bill(home, both + days(PROD, 'vol-2', 0.30, 53, 70))
    p = plan(home, '2026-12-11T06:00:00Z')
    snapshot(p, 'vol-2')
    taken, charges = take_snapshot(p), load_charges(p)
    book = freeze_prices(p, charges)
    db = open_tables(taken, book)
    ready = match_charges(p, db, charges)
    inputs = Inputs(taken, book, db, charges, ready)
    finish(p, inputs, check(p, db, ready))
    saved = realized(p, inputs).to_pylist()
    assert {r['resource_id'] for r in saved} == {'vol-1'} and {r['status'] for r in saved} == {'verified'}
    november, december = saved
    assert november['realized_savings'] == Decimal('1.2')  # 25 to 30 November: 6 x 0.20
    assert december['realized_savings'] == Decimal('1.8')  # 1 to 9 December, where the bill ends: 9 x 0.20

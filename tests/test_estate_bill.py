"""The invented bills: they belong to the estate, read alike in every dialect, and can be made again to the byte."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest

from finops_nb.bill.dialects import charges_sql, totals_sql
from finops_nb.bill.formats import open_bill
from finops_nb.billed_ids import billed_ids_sql
from finops_nb.catalog import connect
from finops_nb.charges import CHARGES, tag_key_sql
from finops_nb.emulator import emulated_aws
from finops_nb.estate import ACCOUNTS, AS_OF, TABLES, names
from finops_nb.estate_bill import bill_lines, commitment_arns, invoice_totals
from finops_nb.estate_bill_files import periods, write_cur2, write_focus, write_legacy_cur
from finops_nb.estate_bill_tables import EXPECTED_BILL, FOUND, OTHERS, PAYERS
from finops_nb.estate_meters import sample_resources, started
from finops_nb.seeding import past, seed_estate

WRITERS = {'cur-2.0': write_cur2, 'focus-1.2': write_focus, 'cur-legacy': write_legacy_cur}
TENANTS = list(PAYERS)
KEY = 'billing_period', 'billing_account_id', 'currency', 'charge_category'
CLOCKS = (2027, 3, 1, 0), (2028, 3, 1, 23), (2026, 10, 31, 1)
KINDS = {
    'ec2_instances': 'ec2_instance',
    'ebs_volumes': 'ebs_volume',
    'ebs_snapshots': 'ebs_snapshot',
    'elastic_ips': 'elastic_ip',
    'nat_gateways': 'nat_gateway',
    'load_balancers': 'load_balancer',
    'rds_instances': 'rds_instance',
    'log_groups': 'log_group',
    's3_buckets': 's3_bucket',
}


@pytest.fixture(scope='module')
def resources():
    return sample_resources()


@pytest.fixture(scope='module')
def lines(resources):
    return {tenant: bill_lines(tenant, resources) for tenant in TENANTS}


@pytest.fixture(scope='module')
def charges(lines, tmp_path_factory):
    "(tenant, format) -> connection with view `charges`, the reader's totals"
    found = {}
    for tenant, table in lines.items():
        for name, write in WRITERS.items():
            con = connect()
            opened = open_bill(con, write(table, tmp_path_factory.mktemp(f'{tenant}-{name}')))
            assert opened.format == name
            con.execute(f'create table charges as {charges_sql(opened)}')
            found[tenant, name] = con, con.sql(totals_sql(opened)).to_arrow_table().to_pylist()
    return found


def asked(table, sql, **params):
    con = connect()
    con.register('lines', table)
    return con.sql(sql, params=params).fetchall()


@pytest.mark.parametrize('tenant', TENANTS)
def test_every_resource_of_the_estate_is_billed_under_a_form_that_attribution_knows(tenant, lines, resources):
    accounts = {a['account']: a['account_id'] for a in ACCOUNTS if a['tenant_id'] == tenant}
    kind_of = {i: k for k in ('i', 'vol', 'snap', 'eipalloc', 'nat') for i in resources if i.startswith(f'{k}-')}
    ids = {(name, kind_of.get(i, '')): i for i, name in resources.items()}
    prefix = dict(zip(TABLES, ('i', 'vol', 'snap', 'eipalloc', 'nat', '', '', '', ''), strict=True))
    rows = [
        dict(account_id=accounts[row['account']], region=row['region'], resource_type=KINDS[table],
             resource_id=ids[name, prefix.get(table, '')], resource_arn='')
        for table, rows in TABLES.items() for row in rows if row['account'] in accounts for name in names(row)
    ]  # fmt: skip
    con = connect()
    con.register('lines', lines[tenant])
    con.execute('create table r(account_id text, region text, resource_type text, resource_id text, resource_arn text)')
    con.executemany('insert into r values ($account_id, $region, $resource_type, $resource_id, $resource_arn)', rows)
    missing = con.sql(f"""
        select resource_type, resource_id from (select *, {billed_ids_sql()} as forms from r) r
        where not exists (from lines where list_contains(r.forms, lines.resource_id) and lines.account_id = r.account_id
                          and (lines.region = r.region or r.resource_type = 's3_bucket'))""").fetchall()
    stopped_before = {'acme': {'legacy-report', 'gitlab-old'}, 'globex': set()}  # the bill begins
    assert len(rows) > 60 and {resources[i] for _, i in missing} == stopped_before[tenant]


def test_ages_are_those_of_the_emulated_resources():
    aws = SimpleNamespace(as_of=AS_OF)
    for name in ('shop-web-1', 'us-nat', '/etl/spark'):
        assert started(name, 42) == past(aws, name, 42)


@pytest.mark.slow
def test_a_bill_of_the_emulated_aws_names_its_ids(lines):
    with emulated_aws() as url:
        found = seed_estate(url).names
    for tenant, sample in lines.items():
        emulated = bill_lines(tenant, found)
        assert emulated.num_rows == sample.num_rows
        assert invoice_totals(emulated) == invoice_totals(sample)
    billed = set(emulated['resource_id'].to_pylist())
    assert next(i for i, name in found.items() if name == 'track-api-1') in billed


@pytest.mark.parametrize('tenant', TENANTS)
@pytest.mark.parametrize('name', WRITERS)
def test_what_is_billed_is_what_the_invoice_says(tenant, name, lines, charges):
    con, totals = charges[tenant, name]
    said = {tuple(r[k] for k in KEY): r for r in invoice_totals(lines[tenant])}
    billed = con.sql("""select strftime(billing_period_start, '%Y-%m') as billing_period, billing_account_id,
        billing_currency as currency, charge_category, sum(billed_cost) as source_total from charges group by all""")
    for rows in (totals, billed.to_arrow_table().to_pylist()):
        got = {tuple(r[k] for k in KEY): r['source_total'] for r in rows}
        assert got.keys() == said.keys()
        assert all(abs(got[k] - said[k]['total']) < Decimal('0.000001') for k in said)


SAME = """sub_account_id, resource_id, charge_period_start, charge_period_end, billing_period_start, charge_category,
    charge_class, charge_frequency, commitment_discount_id, commitment_discount_category, commitment_discount_status,
    service_name, region_id, availability_zone, sku_id, sku_price_id, publisher_name, invoice_id, charge_description,
    x_service_code, x_usage_type, x_operation, x_instance_type, x_cost_categories::text"""


@pytest.mark.parametrize('tenant', TENANTS)
@pytest.mark.parametrize('name', ['cur-2.0', 'cur-legacy'])
def test_all_dialects_read_into_equal_charges(tenant, name, charges):
    con = connect()
    costs = ', '.join(f'sum({c}) as {c}' for c in ('billed_cost', 'effective_cost', 'list_cost', 'contracted_cost'))
    tags = f"""list_sort(list_transform(map_entries(coalesce(tags, map())),
        lambda e: {tag_key_sql('e.key')} || '=' || e.value)) as tags"""
    for view, of in (('a', 'focus-1.2'), ('b', name)):
        con.register(f'{view}_charges', charges[tenant, of][0].sql('from charges').to_arrow_table())
        con.execute(f"""create table {view} as select {SAME}, {tags}, count(*) as n, {costs}
            from {view}_charges group by all""")
    assert con.sql('select sum(n) from a').fetchall() == con.sql('select sum(n) from b').fetchall()
    keys = [c for c in con.sql('from a').columns if not c.endswith('_cost') and c != 'n']
    same = ' and '.join(f'a."{k}" is not distinct from b."{k}"' for k in keys)
    assert con.sql(f'select count(*) from a anti join b on {same}').fetchall() == [(0,)]
    assert con.sql(f'select count(*) from b anti join a on {same}').fetchall() == [(0,)]
    # the negotiated price of reserved hours is no column of CUR
    unlike = con.sql(f"""select charge_description from (select a.*, b as other from a join b on {same})
        where greatest(abs(billed_cost - other.billed_cost), abs(effective_cost - other.effective_cost),
                       abs(list_cost - other.list_cost), if(commitment_discount_category = 'Usage', 0,
                       abs(contracted_cost - other.contracted_cost))) > 1e-9 or n <> other.n""").fetchall()
    assert unlike == []


def test_readers_see_what_commitments_did(charges):
    for name in WRITERS:
        con, _ = charges['acme', name]
        assert con.sql("""select commitment_discount_category, commitment_discount_status, count(*) > 0,
            sum(billed_cost) > 0, sum(effective_cost) > 0 from charges where commitment_discount_id is not null
            group by all order by all""").fetchall() == [
            ('Spend', 'Unused', True, False, True),
            ('Spend', 'Used', True, False, True),
            ('Spend', None, True, True, False),
            ('Usage', 'Unused', True, False, True),
            ('Usage', 'Used', True, False, True),
            ('Usage', None, True, True, False),
        ]
        ((paid, used),) = con.sql("""select sum(billed_cost), sum(effective_cost) from charges
            where commitment_discount_category = 'Spend'""").fetchall()
        assert abs(paid - used) < Decimal('0.0001')  # a plan without upfront: every cent paid was used or unused


@pytest.mark.parametrize('tenant', TENANTS)
def test_costs_are_in_order_and_lines_unique(tenant, lines):
    bad = """select count(*) from lines where line_type in ('Usage', 'DiscountedUsage', 'SavingsPlanCoveredUsage') and
        (contracted_cost > list_cost or effective_cost < 0 or billed_cost < 0 or effective_cost > contracted_cost)"""
    assert asked(lines[tenant], bad) == [(0,)]
    assert asked(lines[tenant], 'select count(*) - count(distinct line_id) from lines') == [(0,)]
    ((late,),) = asked(lines[tenant], 'select count(*) from lines where stop > $t', t=AS_OF)
    assert late == 0


def test_a_rewritten_month_replaces_the_first_writing(resources, lines, tmp_path):
    second = dict(periods(bill_lines('acme', resources, draft=1)))['2026-09']
    first = dict(periods(lines['acme']))['2026-09']
    assert asked(second, 'select sum(billed_cost) from lines') < asked(first, 'select sum(billed_cost) from lines')
    for name, write in WRITERS.items():
        write(lines['acme'], tmp_path / name)
        before = {p: p.read_bytes() for p in (tmp_path / name).rglob('*') if p.is_file()}
        (path,) = write(second, tmp_path / name)
        changed = {p for p in (tmp_path / name).rglob('*') if p.is_file() and before.get(p) != p.read_bytes()}
        assert path in changed and all(re.search('BILLING_PERIOD=2026-09|/20260901-', str(p)) for p in changed)
        con = connect()
        opened = open_bill(con, [path])
        billed = con.sql(f'select sum(billed_cost) from ({charges_sql(opened)})').fetchall()[0][0]
        assert abs(billed - asked(second, 'select sum(billed_cost) from lines')[0][0]) < Decimal('0.000001')
    deliveries = [p for p in (tmp_path / 'cur-legacy').rglob('*.csv.gz') if '/20260901-' in str(p)]
    manifest = json.loads((tmp_path / 'cur-legacy/cur/20260901-20261001/cur-Manifest.json').read_text())
    assert len(deliveries) == 2 and path.parent.name == manifest['assemblyId']  # the old one lies there still


@pytest.mark.parametrize('as_of', [datetime(*c, tzinfo=UTC) for c in CLOCKS])
def test_any_clock_makes_a_bill_that_ends_the_day_before(as_of, resources):
    table = bill_lines('acme', resources, as_of=as_of, months=1)
    assert asked(table, "select max(stop) = date_trunc('day', $t::timestamptz) from lines", t=as_of) == [(True,)]
    ((first,),) = asked(table, "select min(period_start)::date::text from lines")
    assert first == f'{as_of.year}-{as_of.month - 1:02}-01'
    assert asked(table, """select count(*) from (select sum(unblended_cost) as s from lines where line_type in
        ('SavingsPlanCoveredUsage', 'SavingsPlanNegation') group by start, account_id, sku) where s <> 0""") == [(0,)]


@pytest.mark.slow
def test_other_processes_make_the_same_bill():
    code = """
from hashlib import sha256
from finops_nb.estate_bill import bill_lines
from finops_nb.estate_meters import sample_resources
table = bill_lines('acme', sample_resources())
costs = 'line_id', 'resource_id', 'quantity', 'unblended_cost', 'net_cost', 'effective_cost', 'unused_cost'
print(sha256(str(table.select(costs).to_pydict()).encode()).hexdigest())"""
    worlds = (dict(PYTHONHASHSEED='0', TZ='UTC'), dict(PYTHONHASHSEED='7', TZ='Asia/Tokyo'))
    runs = [
        subprocess.run([sys.executable, '-c', code], env=os.environ | w, capture_output=True, text=True, check=True)
        for w in worlds
    ]
    assert len({r.stdout for r in runs}) == 1 and len(runs[0].stdout) == 65


def test_what_must_be_found_is_named_as_the_tables_name_it(resources):
    known = {*resources.values(), *(a['account'] for a in ACCOUNTS), *(r['name'] for r in OTHERS)}
    known |= {*commitment_arns().values()}
    for _, workspace in EXPECTED_BILL:
        for row in (r for r in FOUND if r['workspace'] == workspace):
            for subject in row['subjects'].split(', '):
                account, _, rest = subject.partition('/')
                if rest:
                    assert account in {a['account'] for a in ACCOUNTS if a['workspace_id'] == workspace}
                else:
                    assert subject in known


def test_charges_have_the_catalogs_types(charges):
    for con, _ in charges.values():
        assert con.sql('from charges').to_arrow_table().schema == CHARGES.schema

"""Bills in and out of the store: repeated, corrected, refused, damaged, from folders and from S3."""
import gzip
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import boto3
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finops_nb.bill import load as loading
from finops_nb.bill import store as storing
from finops_nb.bill.load import load_bill
from finops_nb.bill.store import attach_charges, changing, charges_dir, open_charges, reconciliation, remove_bill
from finops_nb.catalog import connect
from finops_nb.charges import CHARGES, focus_name
from finops_nb.emulator import emulated_aws
from finops_nb.errors import AccessError, ConfigError, ContractError

PAYER, OTHER_PAYER = '999988887777', '999988886666'
MINE, THEIRS = '111122223333', '444455556666'
NAMES = [c.name for c in CHARGES.columns if not c.name.startswith('x_')]
COSTS = 'billed_cost', 'effective_cost', 'contracted_cost', 'list_cost'


def charge(day, cost, **kw):
    "A charge of one hour as text, in the words of `charges`"
    month = day[:7]
    known = dict(billing_account_id=PAYER, sub_account_id=MINE, billing_currency='USD', charge_category='Usage',
                 billing_period_start=f'{month}-01T00:00:00Z', billing_period_end=f'{month}-28T00:00:00Z',
                 charge_period_start=f'{day}T00:00:00Z', charge_period_end=f'{day}T01:00:00Z')
    return known | dict.fromkeys(COSTS, str(cost)) | kw


def focus(path, *charges, delimiter=','):
    "A FOCUS 1.2 file: .csv, .csv.gz or .parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.parquet':
        columns = {focus_name(n): pa.array([c.get(n) for c in charges], pa.string()) for n in NAMES}
        pq.write_table(pa.table(columns), path)
        return path
    rows = [map(focus_name, NAMES), *([c.get(n, '') for n in NAMES] for c in charges)]
    with gzip.open(path, 'wt') if path.suffix == '.gz' else path.open('w') as f:
        f.write('\n'.join([*map(delimiter.join, rows), '']))
    return path


def january(path, *costs, **kw):
    return focus(path, *(charge(f'2026-01-{n:02}', c, **kw) for n, c in enumerate(costs, 2)))


def glob(data_dir, tenant_id='acme'):
    "billing period -> billed cost, as somebody sees it who knows nothing of manifests"
    pattern = f'{data_dir}/charges/tenant_id={tenant_id}/billing_period=*/*.parquet'
    if not duckdb.sql(f"from glob('{pattern}')").fetchall(): return {}
    sql = f"select billing_period, sum(billed_cost) from read_parquet('{pattern}', hive_partitioning = true) group by 1"
    return {month: str(cost.normalize()) for month, cost in duckdb.sql(sql).fetchall()}


def view(data_dir, tenant_id='acme'):
    "The same from the view `charges`, which has its declared columns"
    with connect() as con:
        attach_charges(con, open_charges(data_dir, tenant_id))
        assert con.sql('from charges').to_arrow_table().schema == CHARGES.schema
        return {month: str(cost.normalize()) for month, cost in con.sql("""select
            strftime(billing_period_start, '%Y-%m'), sum(billed_cost) from charges group by 1""").fetchall()}


def tree(folder):
    "Every file with its content; empty folders and the lock do not count"
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob('*') if p.is_file() and p.name != '.lock'}
    return {n: (p.stat().st_mtime_ns, p.read_bytes()) for n, p in found.items()}


def months(manifests): return [(m['billing_period'], m['unchanged']) for m in manifests]


def test_the_same_export_again_is_recognised_and_not_read(tmp_path, monkeypatch):
    source = january(tmp_path/'in'/'bill.csv.gz', 1, 2)
    first = load_bill(source, tmp_path/'data', 'acme')
    before = tree(tmp_path/'data')
    monkeypatch.setattr(loading, 'open_bill', None)
    again = load_bill(source, tmp_path/'data', 'acme')
    assert months(first) == [('2026-01', False)] and months(again) == [('2026-01', True)]
    assert again == [m | dict(unchanged=True) for m in first]
    assert tree(tmp_path/'data') == before
    source.rename(source.with_name('renamed.csv.gz'))   # content counts, not the name
    assert months(load_bill(tmp_path/'in', tmp_path/'data', 'acme')) == [('2026-01', True)]


def test_a_corrected_export_replaces_its_month_and_nothing_else(tmp_path):
    load_bill(focus(tmp_path/'a.csv', charge('2026-01-05', 1), charge('2026-02-05', 20)), tmp_path, 'acme')
    assert view(tmp_path) == glob(tmp_path) == {'2026-01': '1', '2026-02': '2E+1'}
    [corrected] = load_bill(january(tmp_path/'b.parquet', 1, 3), tmp_path, 'acme')
    assert (corrected['rows'], corrected['dialect'], corrected['unchanged']) == (2, 'focus-1.2', False)
    assert view(tmp_path) == glob(tmp_path) == {'2026-01': '4', '2026-02': '2E+1'}
    manifests = list((charges_dir(tmp_path, 'acme')/'manifests').iterdir())
    assert len(manifests) == 2   # the replaced one is gone
    # the first file again: January comes back, February still is what it was
    assert months(load_bill(tmp_path/'a.csv', tmp_path, 'acme')) == [('2026-01', False), ('2026-02', False)]
    assert view(tmp_path) == {'2026-01': '1', '2026-02': '2E+1'}


def test_a_month_that_the_next_export_no_longer_has_stays(tmp_path):
    load_bill(january(tmp_path/'a.csv', 5), tmp_path, 'acme')
    load_bill(focus(tmp_path/'b.csv', charge('2026-02-05', 7)), tmp_path, 'acme')
    assert view(tmp_path) == glob(tmp_path) == {'2026-01': '5', '2026-02': '7'}
    assert remove_bill(tmp_path, 'acme', 'bill', '2026-02') == ['2026-02']
    assert view(tmp_path) == glob(tmp_path) == {'2026-01': '5'}
    assert remove_bill(tmp_path, 'acme', 'bill') == ['2026-01']
    assert view(tmp_path) == {} and remove_bill(tmp_path, 'acme', 'bill') == []


def test_the_same_bill_gives_the_same_bytes(tmp_path):
    with connect() as con:
        con.execute("set memory_limit = '500MB'")
        values = charge('2026-01-05', 1) | dict(resource_id='vol', tags='{"team": "web", "app": "shop"}')
        odd = dict(billed_cost="(i % 997)::decimal(18, 6)", resource_id="'vol-' || md5((i // 24)::varchar)")
        columns = ', '.join(f"{odd.get(n, repr(v))} as \"{focus_name(n)}\"" for n, v in values.items())
        con.execute(f"copy (select {columns} from range(300000) t(i)) to '{tmp_path}/big.parquet' (format parquet)")
    hashes = {load_bill(tmp_path/'big.parquet', tmp_path/str(n), 'acme')[0]['parquet']['sha256'] for n in range(3)}
    assert len(hashes) == 1
    stored = pq.ParquetFile(open_charges(tmp_path/'0', 'acme').files[0])
    assert stored.metadata.num_rows == 300_000 and stored.num_row_groups == 3
    first = stored.read_row_group(0, columns=['billed_cost'])['billed_cost'].slice(0, 4).to_pylist()
    assert first == [Decimal(n) for n in range(4)]   # in the order of the source


def test_a_second_export_of_a_month_is_refused_and_one_of_another_payer_is_not(tmp_path):
    load_bill(january(tmp_path/'a.csv', 1), tmp_path/'data', 'acme', 'cur')
    before = tree(tmp_path/'data')
    with pytest.raises(ConfigError, match=f"Export 'cur' already holds 2026-01 of payer {PAYER}.*Load it as 'cur'"):
        load_bill(january(tmp_path/'b.parquet', 1), tmp_path/'data', 'acme', 'focus')
    assert tree(tmp_path/'data') == before
    load_bill(january(tmp_path/'c.csv', 10, billing_account_id=OTHER_PAYER), tmp_path/'data', 'acme', 'second')
    assert view(tmp_path/'data') == glob(tmp_path/'data') == {'2026-01': '11'}
    assert [m['export'] for m in open_charges(tmp_path/'data', 'acme').manifests] == ['cur', 'second']
    load_bill(january(tmp_path/'d.csv', 1), tmp_path/'data', 'globex', 'focus')   # another tenant is another store


def test_a_payer_or_account_of_somebody_else_is_refused_with_all_its_months(tmp_path):
    load_bill(january(tmp_path/'a.csv', 1), tmp_path/'data', 'acme')
    before, foreign = tree(tmp_path/'data'), {THEIRS: 'globex', MINE: 'acme'}
    stranger = focus(tmp_path/'b.csv', charge('2026-01-05', 2), charge('2026-02-05', 3, billing_account_id=OTHER_PAYER))
    with pytest.raises(ConfigError, match=f'2026-02 is of payer {OTHER_PAYER}, which is no payer account'):
        load_bill(stranger, tmp_path/'data', 'acme', payers=[PAYER])
    mixed = focus(tmp_path/'c.csv', charge('2026-01-05', 2), charge('2026-02-05', 3, sub_account_id=THEIRS))
    with pytest.raises(ConfigError, match=f'account {THEIRS}, which belongs to another tenant') as refused:
        load_bill(mixed, tmp_path/'data', 'acme', foreign_accounts=foreign)
    assert 'globex' not in str(refused.value)
    with pytest.raises(ConfigError, match=f'account {PAYER}, which belongs to another tenant'):
        load_bill(tmp_path/'c.csv', tmp_path/'data', 'acme', foreign_accounts={PAYER: 'globex'})
    assert tree(tmp_path/'data') == before
    # what is already stored is looked at with today's rules, too
    with pytest.raises(ConfigError, match='which belongs to another tenant'):
        load_bill(tmp_path/'a.csv', tmp_path/'data', 'acme', foreign_accounts={MINE: 'globex'})
    load_bill(mixed, tmp_path/'data', 'acme', payers=[PAYER], foreign_accounts={THEIRS: 'acme', PAYER: 'globex'})


def test_currencies_and_categories_are_never_added_up(tmp_path):
    source = focus(tmp_path/'a.csv', charge('2026-01-05', '1.10'), charge('2026-01-05', '2.20', billing_currency='EUR'),
                   charge('2026-01-05', '-0.30', charge_category='Credit'), charge('2026-01-05', 0),
                   charge('2026-01-06', '0.0000004'))
    [m] = load_bill(source, tmp_path/'data', 'acme')
    assert m['currencies'] == ['EUR', 'USD'] and m['rows'] == 5 and m['usage_days'] == 2
    rows = reconciliation(open_charges(tmp_path/'data', 'acme').manifests)
    assert [(r['currency'], r['charge_category'], r['rows'], str(r['charges_total'])) for r in rows] == [
        ('EUR', 'Usage', 1, '2.2'), ('USD', 'Credit', 1, '-0.3'), ('USD', 'Usage', 3, '1.1000004')]
    assert all(r['source_total'] == r['charges_total'] and r['difference'] == 0 for r in rows)
    assert (m['first_charge'], m['last_charge']) == ('2026-01-05T00:00:00Z', '2026-01-06T00:00:00Z')


def test_a_sum_that_differs_from_its_source_is_told_with_its_amount(tmp_path, monkeypatch, caplog):
    real = loading.totals_sql
    monkeypatch.setattr(loading, 'totals_sql', lambda opened: f"""select * replace (case when charge_category = 'Tax'
        then source_total + 0.25 else source_total + 0.005 end as source_total) from ({real(opened)})""")
    lines = charge('2026-01-05', 1, resource_id='vol-1'), charge('2026-01-05', 2, charge_category='Tax')
    source = focus(tmp_path/'a.csv', *lines)
    with caplog.at_level(logging.WARNING, logger='finops_nb'): [m] = load_bill(source, tmp_path, 'acme')
    assert [r.getMessage() for r in caplog.records] == [
        f'bill bill 2026-01: USD Tax of payer {PAYER} differs from its source by -0.25']
    assert [(r['charge_category'], str(r['difference'])) for r in reconciliation([m])] == [
        ('Tax', '-0.25'), ('Usage', '-0.005')]
    assert m['mismatches'] == [
        dict(billing_account_id=PAYER, currency='USD', charge_category='Tax', difference='-0.25')]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='finops_nb'): load_bill(source, tmp_path, 'acme')
    assert len(caplog.records) == 1   # not silent because nothing changed


def cut(path, keep): path.write_bytes(path.read_bytes()[:keep]); return path


DAMAGES = {
    'truncated gzip': lambda d: cut(focus(d/'x.csv.gz', *(charge('2026-01-05', n) for n in range(9999))), -4000),
    'gzip without its end': lambda d: cut(focus(d/'x.csv.gz', *(charge('2026-01-05', n) for n in range(9999))), -6),
    'half a Parquet': lambda d: cut(january(d/'x.parquet', *range(9)), 5000),
    'semicolons': lambda d: focus(d/'x.csv', charge('2026-01-05', 1), delimiter=';'),
    'a text for an amount': lambda d: focus(d/'x.csv', charge('2026-01-05', 'a lot')),
    'a field too many': lambda d: focus(d/'x.csv', charge('2026-01-05', 1), charge('2026-01-05', '1,50')),
    'no time': lambda d: focus(d/'x.csv', charge('2026-01-05', 1), charge('2026-01-05', 1, charge_period_start='noon')),
    'no rows': lambda d: focus(d/'x.csv'),
    'no payer': lambda d: january(d/'x.csv', 1, billing_account_id=''),
    'no billing period': lambda d: january(d/'x.csv', 1, billing_period_start=''),
    'an empty file': lambda d: cut(january(d/'x.csv', 1), 0),
    'another table': lambda d: Path(d/'x.csv').write_text('a,b\n1,2\n') and d/'x.csv',
    'the same file twice': lambda d: january(d/'x'/'a.csv', 1) and january(d/'x'/'b.csv', 1).parent,
    'two dialects': lambda d: january(d/'x'/'a.csv', 1) and Path(d/'x'/'b.csv').write_text('a,b\n') and d/'x',
    'nothing': lambda d: d/'nowhere',
    'no bill in it': lambda d: (d/'x').mkdir() or Path(d/'x'/'bill.xlsx').write_text('') or d/'x',
    'a month in the folder of another': lambda d: january(d/'x'/'BILLING_PERIOD=2026-02'/'a.csv', 1).parent.parent,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_damaged_leaves_nothing_behind(tmp_path, damage):
    load_bill(january(tmp_path/'a.csv', 1), tmp_path/'data', 'acme')
    before = tree(tmp_path/'data')
    source = DAMAGES[damage](tmp_path)
    with pytest.raises(ConfigError) as refused: load_bill(source, tmp_path/'data', 'acme')
    assert tree(tmp_path/'data') == before
    assert str(refused.value).startswith(('x', 'a.csv', 'b.csv', 'The ', 'There ')), refused.value
    assert str(tmp_path/'data') not in str(refused.value)
    with pytest.raises(ConfigError): load_bill(source, tmp_path/'new', 'acme')
    assert not tree(tmp_path/'new')


def test_whatever_bytes_of_a_parquet_are_broken_it_is_a_config_error(tmp_path):
    path, rng, refused = january(tmp_path/'x.parquet', *range(28)), random.Random(2), []
    whole = path.read_bytes()
    for _ in range(20):
        at, broken = rng.randrange(4, len(whole) - 50), bytearray(whole)
        broken[at:at + 40] = rng.randbytes(40)
        path.write_bytes(broken)
        try: load_bill(path, tmp_path/'data', 'acme')   # bytes that nothing reads may be broken
        except ConfigError as e: refused.append(str(e))
        assert not list((tmp_path/'data').rglob('.tmp-*'))
    assert any('the bill is damaged' in e for e in refused)


@pytest.mark.parametrize('name', ['', '../x', 'Acme', 'a.b', '*', 'a'*64, 'a/b'])
def test_names_that_are_no_names_reach_no_file(tmp_path, name):
    source = january(tmp_path/'a.csv', 1)
    for tenant, export in ((name, 'bill'), ('acme', name)):
        for do in (load_bill, remove_bill):
            args = (source, tmp_path/'data', tenant, export)[do is remove_bill:]
            with pytest.raises(ConfigError, match='Use lower-case letters'): do(*args)
    assert not (tmp_path/'data').exists()


def test_a_tenant_of_digits_and_odd_folders_stay_what_they_are(tmp_path):
    data = tmp_path/"o'brien [1] *"
    load_bill(january(tmp_path/'a.csv', 1), data, '007')
    assert view(data, '007') == {'2026-01': '1'}
    assert open_charges(data, '007').manifests[0]['tenant_id'] == '007'
    assert open_charges(data, '7').manifests == ()


def test_a_store_of_another_version_is_not_read_with_holes(tmp_path):
    load_bill(january(tmp_path/'a.csv', 1), tmp_path, 'acme')
    charges = open_charges(tmp_path, 'acme')
    charges.manifests[0]['columns'] = 'other'
    with connect() as con, pytest.raises(ContractError, match='has the columns of engine .* Load the bill again'):
        attach_charges(con, charges)


def test_a_manifest_names_files_without_their_folders(tmp_path):
    source = january(tmp_path/'secret'/'a.csv', 1).parent
    load_bill(source, tmp_path/'data', 'acme')
    [manifest] = (charges_dir(tmp_path/'data', 'acme')/'manifests').iterdir()
    said = json.loads(manifest.read_text())
    assert str(tmp_path) not in manifest.read_text() and said['source'] == 'secret'
    assert [(f['name'], f['bytes']) for f in said['files']] == [('a.csv', (source/'a.csv').stat().st_size)]
    assert set(said) >= {'format', 'load_id', 'dialect', 'left_out', 'duplicates', 'payers', 'accounts', 'parquet'}
    path = open_charges(tmp_path/'data', 'acme').files[0]
    assert said['parquet']['bytes'] == path.stat().st_size


def test_a_reader_that_is_overtaken_by_a_load_looks_again(tmp_path, monkeypatch):
    load_bill(january(tmp_path/'a.csv', 1), tmp_path, 'acme')
    path, real = open_charges(tmp_path, 'acme').files[0], storing._load_in
    stale = real(path)
    [new] = load_bill(january(tmp_path/'b.csv', 2), tmp_path, 'acme')
    answers = [stale]   # what the file said just before
    monkeypatch.setattr(storing, '_load_in', lambda path: answers.pop() if answers else real(path))
    assert open_charges(tmp_path, 'acme').manifests == ({k: v for k, v in new.items() if k != 'unchanged'},)
    assert not answers


LOADER = """
import sys
from finops_nb.bill.load import load_bill
load_bill(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def test_loads_of_one_tenant_wait_for_each_other_and_those_of_two_do_not(tmp_path):
    source = january(tmp_path/'a.csv', 1)
    def start(tenant): return subprocess.Popen([sys.executable, '-c', LOADER, str(source), str(tmp_path), tenant])
    with changing(charges_dir(tmp_path, 'acme')):
        waiting, free = start('acme'), start('globex')
        assert free.wait(60) == 0 and view(tmp_path, 'globex') == {'2026-01': '1'}
        time.sleep(0.5)
        assert waiting.poll() is None and glob(tmp_path) == {}
    assert waiting.wait(60) == 0 and view(tmp_path) == {'2026-01': '1'}


MONTHS = '2026-01', '2026-02', '2026-03'
EXPORTS = st.sampled_from(['one', 'two'])
LOAD = st.tuples(EXPORTS, st.dictionaries(st.sampled_from(MONTHS), st.integers(0, 9), min_size=1))
REMOVE = st.tuples(EXPORTS, st.sampled_from([None, *MONTHS]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(LOAD, REMOVE), max_size=6))
def test_any_sequence_of_loads_gives_what_each_export_said_last(steps):
    payer, last = dict(one=PAYER, two=OTHER_PAYER), {}
    with tempfile.TemporaryDirectory() as d:
        for export, what in steps:
            if isinstance(what, dict):
                charges = [charge(f'{m}-05', cost, billing_account_id=payer[export]) for m, cost in what.items()]
                load_bill(focus(Path(d)/'bill.csv', *charges), d, 'acme', export)
                last |= {(export, m): cost for m, cost in what.items()}
            else:
                gone = {k for k in last if k[0] == export and what in (None, k[1])}
                assert remove_bill(d, 'acme', export, what) == sorted(m for _, m in gone)
                for k in gone: del last[k]
        expected = defaultdict(int)
        for (_, month), cost in last.items(): expected[month] += cost
        expected = {m: str(Decimal(c).normalize()) for m, c in expected.items()}
        assert view(d) == glob(d) == expected
        manifests = open_charges(d, 'acme').manifests
        assert [(m['export'], m['billing_period']) for m in manifests] == sorted(last, key=lambda k: k[::-1])
        assert sum(r['charges_total'] for r in reconciliation(manifests)) == sum(last.values())


# --- manifests of AWS, in folders and on S3

def data_export(put, bucket, prefix, month, *chunks):
    "A Data Exports delivery with manifest; one more chunk lies there from when the export was longer"
    folder = f'BILLING_PERIOD={month}'
    keys = [f'{prefix}/data/{folder}/new-{n:05}.csv.gz' for n in range(1, len(chunks) + 2)]
    for key, cost in zip(keys, (*chunks, 1000), strict=True): put(key, charge(f'{month}-05', cost))
    said = dict(exportArn='arn:aws:bcm-data-exports:us-east-1:111122223333:export/new', executionId='e1',
                dataFiles=[f's3://{bucket}/{k}' for k in keys[:-1]], columns=[])
    put(f'{prefix}/metadata/{folder}/new-Manifest.json', said)
    put(f'{prefix}/metadata/{folder}/2026-01-30T00:00:00.000Z-e0/new-Manifest.json', said | dict(dataFiles=[keys[-1]]))


def legacy_report(put, bucket, prefix, old, new):
    "A legacy report that keeps its deliveries: two of January, each with a copy of its manifest"
    month = f'{prefix}/20260101-20260201'
    for assembly, cost in (('0e11', old), ('9f22', new)):
        keys = [f'{month}/{assembly}/old-{n}.csv.gz' for n in (1, 2)]
        for key in keys: put(key, charge('2026-01-05', cost, resource_id=key))
        said = dict(assemblyId=assembly, reportName='old', bucket=bucket, reportKeys=keys, compression='GZIP',
                    billingPeriod=dict(start='20260101T000000.000Z', end='20260201T000000.000Z'))
        for folder in (month, f'{month}/{assembly}'): put(f'{folder}/old-Manifest.json', said)


def into(folder):
    "put(key, content) for a folder"
    def put(key, content):
        path = folder/key
        if not key.endswith('.json'): focus(path, content); return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return put


def test_a_manifest_in_a_folder_decides(tmp_path):
    data_export(into(tmp_path/'a'), 'acme-cur', 'cur/new', '2026-01', 1, 2)
    data_export(into(tmp_path/'a'), 'acme-cur', 'cur/new', '2026-02', 5)
    load_bill(tmp_path/'a', tmp_path, 'acme', 'new')
    legacy_report(into(tmp_path/'b'), 'acme-cur', 'cur/old', 10, 20)
    load_bill(tmp_path/'b'/'cur'/'old', tmp_path, 'globex')   # a copy of a part of the bucket
    assert (view(tmp_path), view(tmp_path, 'globex')) == ({'2026-01': '3', '2026-02': '5'}, {'2026-01': '4E+1'})
    next((tmp_path/'a').rglob('BILLING_PERIOD=2026-02/new-00001.csv.gz')).unlink()
    with pytest.raises(ConfigError, match='new-Manifest.json names .*new-00001.csv.gz, which is there 0 times'):
        load_bill(tmp_path/'a', tmp_path, 'acme', 'new')
    assert view(tmp_path) == {'2026-01': '3', '2026-02': '5'}


@pytest.fixture
def bucket(monkeypatch):
    "put(key, content) for a bucket of an emulated S3"
    with emulated_aws() as url:
        names = 'AWS_ENDPOINT_URL', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'
        for name, value in zip(names, (url, 'testing', 'testing'), strict=True): monkeypatch.setenv(name, value)
        s3 = boto3.client('s3', 'us-east-1')
        s3.create_bucket(Bucket='acme-cur')
        with tempfile.TemporaryDirectory() as d:
            def put(key, content):
                into(Path(d))(key, content)
                s3.upload_file(f'{d}/{key}', 'acme-cur', key)
            put.s3 = s3
            yield put
        s3.close()


def test_a_bill_comes_from_s3_by_its_manifests(bucket, tmp_path, monkeypatch):
    data_export(bucket, 'acme-cur', 'cur/new', '2026-01', 1, 2)
    data_export(bucket, 'acme-cur', 'cur/new', '2026-02', 5)
    legacy_report(bucket, 'acme-cur', 'cur/old', 10, 20)
    bucket('cur/newer/stray.csv', charge('2026-01-05', 500))   # below s3://acme-cur/cur/new only by its letters
    first = load_bill('s3://acme-cur/cur/new', tmp_path, 'acme', 'new')
    assert [(m['source'], m['rows'], [f['name'] for f in m['files']]) for m in first] == [
        ('s3://acme-cur/cur/new', 2, ['new-00001.csv.gz', 'new-00002.csv.gz']),
        ('s3://acme-cur/cur/new', 1, ['new-00001.csv.gz'])]
    load_bill('s3://acme-cur/cur/old/', tmp_path, 'globex')
    assert view(tmp_path) == glob(tmp_path) == {'2026-01': '3', '2026-02': '5'}
    assert view(tmp_path, 'globex') == {'2026-01': '4E+1'}
    assert not list(tmp_path.rglob('*.csv*'))   # copies are gone
    # again: S3 says that nothing changed, so nothing is fetched
    data_export(bucket, 'acme-cur', 'cur/new', '2026-02', 6)
    fetched, real = [], loading.fetch_part
    monkeypatch.setattr(loading, 'fetch_part', lambda *args: fetched.append(args[1].period) or real(*args))
    again = load_bill('s3://acme-cur/cur/new', tmp_path, 'acme', 'new')
    assert months(again) == [('2026-01', True), ('2026-02', False)]
    assert fetched == ['2026-02'] and view(tmp_path) == {'2026-01': '3', '2026-02': '6'}


def test_what_s3_refuses_or_lacks_changes_nothing(bucket, tmp_path):
    data_export(bucket, 'acme-cur', 'cur/new', '2026-01', 1)
    load_bill('s3://acme-cur/cur/new', tmp_path, 'acme')
    before = tree(tmp_path)
    bucket.s3.delete_object(Bucket='acme-cur', Key='cur/new/data/BILLING_PERIOD=2026-01/new-00001.csv.gz')
    for source, words in dict(new='which is there 0 times', ne='holds no bill').items():
        with pytest.raises(ConfigError, match=words): load_bill(f's3://acme-cur/cur/{source}', tmp_path, 'acme')
    with pytest.raises(ConfigError, match='there is no such bucket'): load_bill('s3://globex-cur/cur', tmp_path, 'acme')
    assert tree(tmp_path) == before


def test_a_delivery_that_arrives_while_the_bill_is_read_is_noticed(bucket, tmp_path, monkeypatch):
    data_export(bucket, 'acme-cur', 'cur/new', '2026-01', 1)
    real = loading.fetch_part
    def late(place, part, to):
        data_export(bucket, 'acme-cur', 'cur/new', '2026-01', 2)
        return real(place, part, to)
    monkeypatch.setattr(loading, 'fetch_part', late)
    with pytest.raises(AccessError, match='was replaced while it was read.* Load it again'):
        load_bill('s3://acme-cur/cur/new', tmp_path, 'acme')
    assert not tree(tmp_path)


@pytest.mark.parametrize('name', ['focus_1.0_sample.csv', 'cur_legacy_sample_focus_converters.csv',
                                  'nise_generated_cur_legacy_2026-10.csv.gz'])
def test_bills_that_others_wrote_load_and_reconcile(tmp_path, name):
    manifests = load_bill(Path(__file__).parent/'data'/'billing'/name, tmp_path, 'acme')
    rows = reconciliation(manifests)
    assert rows and all(r['difference'] == 0 for r in rows) and not any(m['mismatches'] for m in manifests)
    assert {m['billing_period'] for m in manifests} == set(view(tmp_path)) == set(glob(tmp_path))

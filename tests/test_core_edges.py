"""Odd input at the door of the core: whatever a check hands over becomes a finding or a reject, never an exception."""
import math
from collections import UserDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from types import MappingProxyType

import duckdb
import pyarrow as pa
import pytest

from finops_nb import ids
from finops_nb.contracts import ContractError, FindingDraft, Scope
from finops_nb.schema import FIELDS, FINOPS_FINDINGS_SCHEMA
from finops_nb.storage_cast import REJECTS_SCHEMA, cast_for_storage, to_storage
from finops_nb.wire import BATCH_ROWS, batches

GOOD = {'tenant_id': 'acme', 'workspace_id': 'prod', 'run_id': 'run-1', 'run_ts': '2026-11-24T06:00:00Z',
        'check_id': 'a.b', 'status': 'fail', 'severity': {'level': 'low'}, 'source': {'schema_version': 1},
        'scope': {'cloud': 'aws', 'account_id': '111122223333', 'service': 'AmazonEC2', 'resource_id': 'vol-1'}}


def with_path(path, value):
    "GOOD with one field set"
    *parents, leaf = path.split('.')
    record = dict(GOOD)
    node = record
    for p in parents:
        node[p] = dict(node.get(p) or {})
        node = node[p]
    node[leaf] = value
    return record


def rules(stored): return [(r['row'], r['field'], r['rule']) for r in stored.rejects.to_pylist()]


def stored_value(record, path):
    stored = to_storage([record])
    assert rules(stored) == []
    value, = stored.table.to_pylist(maps_as_pydicts='strict')
    for p in path.split('.'): value = value[p]
    return value


class Colour(Enum): red = 'red'


class Status(StrEnum): failed = 'fail'


@dataclass
class Record:
    tenant_id: str = 'acme'
    workspace_id: str = 'prod'
    run_id: str = 'run-1'
    run_ts: datetime = datetime(2026, 11, 24, 11, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    check_id: str = 'a.b'
    status: str = 'fail'
    severity: dict = field(default_factory=lambda: {'level': 'low'})
    source: dict = field(default_factory=lambda: {'schema_version': 1})
    scope: Scope = Scope('111122223333', service='AmazonEC2', resource_id='vol-1')


def endless():
    d = {}
    d['self'] = d
    return d


def deep(n=5000):
    d = {}
    for _ in range(n): d = {'a': d}
    return d


ODD = {
    'null': None, 'int': 5, 'huge int': 10**400, 'nan': math.nan, 'infinity': math.inf, 'complex': 1j, 'bool': True,
    'decimal with exponent': Decimal('1E+3'), 'signalling nan': Decimal('sNaN'), 'huge decimal': Decimal('1E+9999'),
    'nul': '\x00', 'lone surrogate': 'a\ud800', 'bytes': b'\xff', 'long': 'x' * 2**16, 'enum': Colour.red,
    'class': Record, 'object': object(), 'dataclass': Scope('1'), 'list': [1], 'empty list': [],
    'list of lists': [['a']], 'tuple': (1, 'a'),
    'set': {'a'}, 'empty dict': {}, 'nested': {'a': {'b': [1]}}, 'key None': {None: 1}, 'key int': {1: 2, '1': 3},
    'key tuple': {(1, 2): 3}, 'key surrogate': {'\ud800': 'a'}, 'value surrogate': {'a': '\ud800'},
    'mapping': MappingProxyType({'a': 1}), 'date': date(2026, 1, 1), 'naive': datetime(2026, 1, 1),
    'first hour': datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), 'endless': endless(), 'deep': deep(),
}


@pytest.mark.parametrize('name', ODD)
def test_an_odd_value_anywhere_is_stored_or_a_reject_of_its_record_only(name):
    odd = ODD[name]
    paths = [f.path for f in FIELDS] + ['scope', 'actual', 'actual.model', 'severity', 'nobody', 'scope.nobody']
    records = [GOOD, odd, *(with_path(p, odd) for p in paths), GOOD]
    for mode in ('strict', 'lenient'):
        stored = to_storage(records, mode)
        rejected = {row for row, *_ in rules(stored)}
        assert len(stored.table) + len(rejected) == len(records)
        assert not rejected & {0, len(records) - 1}
        stored.table.validate(full=True)
        assert all(r['message'] and r['record'] for r in stored.rejects.to_pylist())


@pytest.mark.parametrize('bad', [math.nan, math.inf, Decimal('NaN'), 'NaN', True, '5 EUR'])
def test_what_is_no_number_is_never_unknown(bad):
    for path in ('priority', 'severity.score', 'estimated.monthly_savings', 'actual.attribution.confidence'):
        assert rules(to_storage([with_path(path, bad)])) == [(0, path, 'type')]


def test_every_spelling_of_an_amount_is_the_same_amount():
    path = 'estimated.monthly_savings'
    for v in (1500, 1500.0, '1500', ' 1.5E3 ', Decimal('1.5E+3'), Decimal('1500.0000000')):
        assert stored_value(with_path(path, v), path) == Decimal('1500.000000')
        assert stored_value(with_path('metrics', {'n': v}), 'metrics') == {'n': Decimal('1500.000000')}


def test_a_lone_surrogate_is_a_fault_of_its_field():
    odd = '\ud800'
    for path, value in (('title', odd), ('tags', {'a': odd}), ('frameworks', [odd]), ('issue_key', {odd: 'a'})):
        assert rules(to_storage([GOOD, with_path(path, value)])) == [(1, path, 'type')]
    assert rules(to_storage([with_path('check_id', '\ud800')])) == [(0, 'check_id', 'type')]  # and not also `required`


def test_an_unknown_field_keeps_its_value_as_text():
    extra = {'cost': Decimal('1.0'), 'seen': date(2026, 1, 1), 'n': 5, 'odd': '\ud800', None: 'x'}
    kept = '{"None":"x","cost":"1.0","n":"5","odd":"\\\\ud800","seen":"2026-01-01"}'
    assert stored_value(GOOD | extra, 'metadata_json') == kept


def test_a_record_is_stored_the_same_whatever_its_neighbours():
    first, second = GOOD | {'b': 1}, GOOD | {'a': 1, 'b': 2}
    assert to_storage([first, second]).table.slice(1).to_pylist() == to_storage([second]).table.to_pylist()


def test_keys_of_maps_are_text_and_the_last_of_equal_keys_wins():
    tags = {1: 'a', '1': 'b', None: 'c', False: 'd'}
    assert stored_value(with_path('tags', tags), 'tags') == {'1': 'b', '': 'c', 'false': 'd'}
    key = {1: None, 'Volume': 7, None: Decimal('1.50')}
    got = to_storage([with_path('issue_key', key)]).table['fingerprint'][0].as_py()
    assert got == ids.compute_fingerprint(tenant_id='acme', check_id='a.b', scope=GOOD['scope'], issue_key=key)


def test_nothing_is_dropped_from_a_link():
    assert rules(to_storage([with_path('links', [{'label': 'docs', 'rel': 'x'}])])) == [(0, 'links', 'type')]
    assert rules(to_storage([with_path('links', ['docs'])])) == [(0, 'links', 'type')]
    assert stored_value(with_path('links', [{'label': 'docs'}]), 'links') == [{'label': 'docs', 'url': None}]


def test_sets_are_stored_in_order():
    assert stored_value(with_path('frameworks', {'b', 'a', 'c'}), 'frameworks') == ['a', 'b', 'c']


@pytest.mark.parametrize('source', [Record(), [Record()], UserDict(GOOD), [MappingProxyType(GOOD)], GOOD, iter([GOOD])])
def test_records_of_other_classes(source):
    stored = to_storage(source)
    assert rules(stored) == []
    assert stored.table['run_ts'].to_pylist() == [datetime(2026, 11, 24, 6, tzinfo=UTC)]
    assert stored.table['fingerprint'].to_pylist() == to_storage([GOOD]).table['fingerprint'].to_pylist()


def test_one_draft_is_a_source_and_an_enum_is_its_value():
    draft = FindingDraft('a.b', 'title', 'rate_optimization', Scope('1', service='S'), status=Status.failed)
    run = {k: GOOD[k] for k in ('tenant_id', 'workspace_id', 'run_id', 'run_ts')} | {'source.schema_version': 1}
    assert to_storage(draft, run=run).table['status'].to_pylist() == ['fail']


@pytest.mark.parametrize('source', [None, 5, 'text', b'text', Record])
def test_what_is_no_source_is_an_error_of_the_check(source):
    with pytest.raises(ContractError, match='Findings came as'): to_storage(source)


@pytest.mark.parametrize('source', [
    [], iter(()), pa.table({}), pa.table({'tenant_id': pa.array([], pa.string())}), pa.table({'x': pa.nulls(0)}),
    pa.table({'tenant_id': ['a']}).slice(1)])
def test_an_empty_source_gives_empty_typed_tables(source):
    stored = to_storage(source)
    assert (len(stored.table), len(stored.rejects)) == (0, 0)
    assert stored.table.schema == FINOPS_FINDINGS_SCHEMA and stored.rejects.schema == REJECTS_SCHEMA


# Tables

COLUMNS = {'tenant_id': 'acme', 'workspace_id': 'prod', 'run_id': 'run-1', 'run_ts': '2026-11-24T06:00:00Z',
           'check_id': 'a.b', 'status': 'fail', 'severity.level': 'low', 'source.schema_version': '1',
           'scope.cloud': 'aws', 'scope.account_id': '111122223333', 'scope.service': 'AmazonEC2',
           'scope.resource_id': 'vol-1'}


def table(n=1, **columns):
    return pa.table({k: pa.array([v] * n) for k, v in COLUMNS.items() if k not in columns} | columns)


STRING, CODED = pa.string(), pa.dictionary(pa.int8(), pa.string())
TEXTS = [pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view(), CODED,
         pa.dictionary(pa.int32(), pa.large_string())]


@pytest.mark.parametrize('type_', TEXTS, ids=str)
def test_text_of_any_arrow_type_is_text(type_):
    is_bytes = pa.types.is_binary(type_) or pa.types.is_binary_view(type_)
    def column(v): return pa.array([v.encode() if is_bytes else v]).cast(type_)
    odd = pa.table({k: column(v) for k, v in COLUMNS.items()} | {'severity': column(' ')})
    assert to_storage(odd).table.equals(to_storage(table()).table)
    wrong = odd.set_column(odd.schema.get_field_index('status'), 'status', column('warn'))
    reject, = to_storage(wrong).rejects.to_pylist()
    assert (reject['field'], reject['value']) == ('status', 'warn') and '"status":"warn"' in reject['record']


def test_bytes_that_are_no_text_keep_their_escape():
    stored = to_storage(table(2, title=pa.array([b'\xff', b'ok']), status=pa.array([b'fail', b'\xff'])))
    assert stored.table['title'].to_pylist() == ['\\xff']
    assert [(r['row'], r['value']) for r in stored.rejects.to_pylist()] == [(1, '\\xff')]


MAPS = [
    pa.array([[('a', '1')]], pa.map_(STRING, STRING)), pa.array([[('a', '1')]], pa.map_(pa.large_string(), CODED)),
    pa.array([[('a', '1')]], pa.map_(CODED, pa.string_view())), pa.array([[('a', 1)]], pa.map_(STRING, pa.int64())),
    pa.array([{'a': '1'}]), pa.array([{'a': '1', 'b': None}]), pa.array([{'a': 1}]),
    pa.array([[{'key': 'a', 'value': '1'}]]),
    pa.array([[{'key': b'a', 'value': '1'}]], pa.large_list(pa.struct([('key', pa.binary()), ('value', STRING)])))]


@pytest.mark.parametrize('column', MAPS, ids=lambda a: str(a.type))
def test_maps_of_any_arrow_type(column):
    for path in ('tags', 'issue_key'):
        assert to_storage(table(**{path: column})).table[path].to_pylist() == [[('a', '1')]]
    assert to_storage(table(metrics=column)).table['metrics'].to_pylist() == [[('a', Decimal(1))]]


def test_a_map_entry_without_a_key_is_a_reject():
    pairs = pa.array([[{'key': 'a', 'value': '1'}], [{'key': None, 'value': '1'}], [None], None])
    for path in ('tags', 'metrics', 'issue_key'):
        assert rules(to_storage(table(4, **{path: pairs}))) == [(1, path, 'type'), (2, path, 'type')]


LISTS = [pa.list_(STRING), pa.large_list(pa.large_string()), pa.list_(STRING, 2), pa.list_view(STRING), pa.list_(CODED)]


@pytest.mark.parametrize('type_', LISTS, ids=str)
def test_lists_of_any_arrow_type_also_when_sliced(type_):
    rows = [['x', 'y'], ['a', 'b'], None, ['c', 'd'], ['x', 'y']]
    t = table(5, frameworks=pa.array(rows, type_))
    assert to_storage(t.to_batches()[0].slice(1, 3)).table['frameworks'].to_pylist() == rows[1:4]


def test_null_columns_are_absent_columns():
    paths = {f.path.split('.')[0] for f in FIELDS} | {'estimated.notes', 'nobody'}
    absent = {path: pa.nulls(1) for path in paths if path not in COLUMNS}
    assert to_storage(table(**absent), 'strict').table.equals(to_storage(table()).table)


@pytest.mark.parametrize('account', [
    pa.array([111122223333]), pa.array([111122223333]).dictionary_encode(), pa.array([Decimal(111122223333)]),
    pa.array([111122223333], pa.uint64())], ids=lambda a: str(a.type))
def test_ids_that_are_numbers_are_text(account):
    stored = to_storage(table(**{'scope.account_id': account})).table
    assert stored['fingerprint'].to_pylist() == to_storage(table()).table['fingerprint'].to_pylist()


def test_columnar_ids_take_numbers_and_large_text():
    large = pa.array(['x', 'x'], pa.large_string())
    scope = dict.fromkeys((*ids.SCOPE_KEYS, 'resource_arn'), large) | {'account_id': pa.array([7, 7])}
    got = ids.fingerprints(large, pa.array(['c', 'c']).dictionary_encode(), scope, pa.nulls(2))
    one = dict.fromkeys(ids.SCOPE_KEYS, 'x') | {'account_id': 7}
    want = ids.compute_fingerprint(tenant_id='x', check_id='c', scope=one)
    assert got.to_pylist() == [want, want]


@pytest.mark.parametrize('column', [
    pa.array([2**62]).cast(pa.timestamp('us')), pa.array([2**62]).cast(pa.timestamp('s', 'UTC')),
    pa.array([2**31 - 1], pa.int32()).cast(pa.date32())], ids=lambda a: str(a.type))
def test_times_beyond_the_year_9999_are_rejects(column):
    for path in ('run_ts', 'lifecycle.first_seen_ts'):
        assert (0, path, 'range') in rules(to_storage(table(**{path: column})))
    assert len(to_storage(table(nobody=column)).table) == 1  # and an unknown column of them is kept as text


def test_slices_and_chunks_are_read_like_a_table_of_their_own():
    n = 12
    same = {k: v for k, v in COLUMNS.items() if not k.startswith('scope.')}
    whole = pa.Table.from_pylist([same | {
        'title': f't{i}', 'frameworks': [f'f{i}'] * (i % 3), 'estimated.monthly_savings': str(i), 'nobody': i,
        'scope': {'cloud': 'aws', 'account_id': str(i), 'service': 'S'},
        'tags': {'a': f'{i}', 'b': None if i % 2 else 'x'},
        'links': [{'label': str(i), 'url': None}] if i % 2 else None,
        'run_ts': 'soon' if i == 7 else '2026-11-24T06:00:00Z'} for i in range(n)])
    metrics = pa.array([[('n', i)] * (i % 2) for i in range(n)], pa.map_(STRING, pa.int64()))
    keys = pa.array([[('n', str(i))] if i % 3 else None for i in range(n)], pa.map_(STRING, STRING))
    whole = whole.append_column('metrics', metrics).append_column('issue_key', keys)
    want = to_storage(whole)
    assert rules(want) == [(7, 'run_ts', 'type')]
    for size in (1, 5):
        got = to_storage(pa.Table.from_batches(whole.to_batches(max_chunksize=size)))
        assert got.table.equals(want.table) and got.rejects.equals(want.rejects)
    batch, = whole.to_batches()
    some = batch.slice(3, 6)
    copy = pa.Table.from_pylist(some.to_pylist(), whole.schema)
    assert to_storage(some).table.equals(to_storage(copy).table)
    reader = pa.RecordBatchReader.from_batches(whole.schema, [batch.slice(0, 5), batch.slice(5)])
    assert to_storage(reader).table.equals(want.table)


def test_more_rows_than_a_batch_are_split_and_counted_on():
    n = BATCH_ROWS + 10
    t = pa.table({k: pa.repeat(v, n) for k, v in COLUMNS.items() if k != 'status'}
                 | {'status': pa.concat_arrays([pa.repeat('fail', n - 1), pa.array(['warn'])])})
    assert [b.rows for b in batches(t.to_reader(max_chunksize=n))] == [BATCH_ROWS, 10]
    stored = to_storage(t)
    assert (len(stored.table), rules(stored)) == (n - 1, [(n - 1, 'status', 'enum')])


def test_relations_with_parameters_and_the_types_of_duckdb():
    con = duckdb.connect()
    con.execute("set TimeZone = 'Europe/Paris'")
    run = {k: v for k, v in COLUMNS.items() if k != 'scope.resource_id'}
    rel = con.sql("""
        select $id as "scope.resource_id", {'monthly_savings': 1.5::double, 'currency': 'EUR'} as estimated,
               map {'a': 1} as metrics, struct_pack(a := 1.5, b := 'x') as tags, 1::hugeint as priority,
               'x'::enum('x', 'y') as title, uuid() as message, [1, 2] as frameworks, interval 1 day as notes,
               '\\xFF'::blob as recommendation, '{"a":1}'::json as metadata_json,
               timestamptz '2026-11-24 07:00:00' as "lifecycle.first_seen_ts", union_value(a := 1) as sub_category,
               time '01:00' as category, '101'::bit as check_name""", params={'id': 'vol-1'})
    row, = to_storage(rel, run=run).table.to_pylist(maps_as_pydicts='strict')
    assert (row['scope']['resource_id'], row['priority'], row['title']) == ('vol-1', 1, 'x')
    assert (row['frameworks'], row['metrics'], row['tags']) == (['1', '2'], {'a': 1}, {'a': '1.5', 'b': 'x'})
    assert row['estimated']['monthly_savings'] == Decimal('1.5')
    assert row['lifecycle']['first_seen_ts'] == datetime(2026, 11, 24, 6, tzinfo=UTC)


def test_one_record_is_cast_by_the_same_rules():
    assert cast_for_storage(GOOD | {'tags': {None: 1}})['tags'] == {'': '1'}
    with pytest.raises(ContractError, match='title is'): cast_for_storage(GOOD | {'title': '\ud800'})

"""The columnar core against plain Python, one record at a time, on random input."""

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finops_nb import ids
from finops_nb.contracts import ValidationError, build_ids_and_validate
from finops_nb.schema import FIELDS
from finops_nb.storage_cast import to_storage

GOOD = {
    'tenant_id': 'acme',
    'workspace_id': 'prod',
    'run_id': 'r1',
    'run_ts': '2026-11-24T06:00:00Z',
    'check_id': 'a.b',
    'status': 'fail',
    'scope': {'cloud': 'aws', 'account_id': '1', 'service': 'S'},
    'severity': {'level': 'low'},
    'source': {'schema_version': 1},
}

slow_ok = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
text = st.text(st.characters(codec='utf-8', exclude_characters='\x00'), max_size=12)
odd = st.sampled_from(['', ' ', ' a ', '\tA', 'É', '"', '\\', '\n', '\x1f', '\x7f', '☃', 'a,b', '{}', 'İ'])
word = text | odd


@slow_ok
@given(
    st.lists(
        st.tuples(
            word,
            word,
            st.fixed_dictionaries({k: word | st.none() for k in (*ids.SCOPE_KEYS, 'resource_arn')}),
            st.none() | st.dictionaries(word, word | st.none(), max_size=4),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_columnar_fingerprints_equal_the_specification(rows):
    columns = {k: pa.array([s[k] for _, _, s, _ in rows], pa.string()) for k in (*ids.SCOPE_KEYS, 'resource_arn')}
    issues = pa.array([None if i is None else list(i.items()) for *_, i in rows], pa.map_(pa.string(), pa.string()))
    got = ids.fingerprints(pa.array([t for t, *_ in rows]), pa.array([c for _, c, *_ in rows]), columns, issues)
    assert got.to_pylist() == [
        ids.compute_fingerprint(tenant_id=t, check_id=c, scope=s, issue_key=i) for t, c, s, i in rows
    ]


@slow_ok
@given(st.lists(st.tuples(word, word), min_size=1, max_size=20))
def test_columnar_finding_ids_equal_the_specification(rows):
    prints = [ids.compute_fingerprint(tenant_id=t, check_id='c', scope={}) for t, _ in rows]
    got = ids.finding_ids(pa.array([t for t, _ in rows]), pa.array(prints), pa.array([s for _, s in rows]))
    assert got.to_pylist() == [
        ids.compute_finding_id(tenant_id=t, fingerprint=f, id_salt=s) for (t, s), f in zip(rows, prints, strict=True)
    ]


def test_fingerprints_of_more_rows_than_a_sample_with_few_and_many_distinct_values():
    n = 5000
    scopes = [
        dict(
            cloud='aws',
            account_id=str(i % 3),
            region=' EU ',
            service='S',
            resource_type='t',
            resource_id='' if i == 4321 else f'r-"{i}',
            resource_arn='arn',
        )
        for i in range(n)
    ]
    keys = [{'B': str(i), 'a': 'x'} if i % 5 == 0 else None for i in range(n)]
    columns = {k: pa.array([s[k] for s in scopes]) for k in (*ids.SCOPE_KEYS, 'resource_arn')}
    got = ids.fingerprints(
        pa.array(['acme'] * n),
        pa.array(['C'] * n),
        columns,
        pa.array([k and list(k.items()) for k in keys], pa.map_(pa.string(), pa.string())),
    )
    assert got.to_pylist() == [
        ids.compute_fingerprint(tenant_id='acme', check_id='C', scope=s, issue_key=k)
        for s, k in zip(scopes, keys, strict=True)
    ]


# A second opinion on validation, written from DESIGN.md without looking at the columnar code.


def blank(v):
    return v is None or isinstance(v, str) and not v.strip(' \t\n\r\x0b\x0c')


def read(kind, v):
    "(value, rule) of one scalar as the design words it"
    if blank(v) and kind not in ('text', 'tenant'):
        return None, None
    s = v.isoformat() if isinstance(v, datetime | date) else str(v)
    if kind in ('money', 'u8', 'u16'):
        try:
            d = Decimal(s.strip())
        except InvalidOperation:
            return None, 'type'
        if not d.is_finite() or '_' in s:
            return None, 'type'
        if abs(d) >= Decimal(10) ** 12:
            return None, 'range'
        d = d.quantize(Decimal('0.000001'), ROUND_HALF_EVEN)
        if abs(d) >= 10**12:
            return None, 'range'
        if kind == 'money':
            return d, None
        return (int(d), None) if d == int(d) else (None, 'type')
    if kind == 'time':
        try:
            t = datetime.fromisoformat(s.strip())
        except ValueError:
            return None, 'type'
        return (t.replace(tzinfo=UTC) if t.tzinfo is None else t.astimezone(UTC)), None
    if kind == 'date':
        try:
            return date.fromisoformat(s.strip()), None
        except ValueError:
            return None, 'type'
    return v, None


def opinion(record):
    "The set of (field, rule) a plain reading of the design rejects in a record whose shape is right"
    got, out = {}, set()
    for f in FIELDS:
        v = record
        for part in f.path.split('.'):
            v = v.get(part) if isinstance(v, dict) else None
        if f.kind == 'money_map':
            if any(read('money', x)[1] for x in (v or {}).values()):
                out.add((f.path, 'type'))
            continue
        if f.kind in ('text_map', 'texts', 'links'):
            continue
        value, rule = read(f.kind, v)
        if f.kind == 'enum' and not blank(v):
            value = str(v).strip(' \t\n\r\x0b\x0c').lower()
            if value not in f.allowed:
                rule = 'enum'
        if f.low is not None and value is not None and not f.low <= value <= f.high:
            rule = 'range'
        if rule:
            out.add((f.path, rule))
        got[f.path] = None if rule else value
        if f.required and f.path not in ('finding_id', 'fingerprint', 'run_date') and not rule and blank(value):
            out.add((f.path, 'required'))

    def above(a, b):
        return got[a] is not None and got[b] is not None and got[a] > got[b]

    for a, b in (
        ('estimated.monthly_savings', 'estimated.monthly_cost'),
        ('actual.savings_7d', 'actual.cost_7d'),
        ('actual.savings_30d', 'actual.cost_30d'),
    ):
        if above(a, b):
            out.add((a, 'coherence'))
    if got['status'] in ('pass', 'info') and got['lifecycle.status'] in ('open', 'acknowledged'):
        out.add(('lifecycle.status', 'coherence'))
    start, end = got['actual.model.period_start'], got['actual.model.period_end']
    if start and end and start >= end:
        out.add(('actual.model.period_end', 'coherence'))
    if got['lifecycle.status'] == 'snoozed' and got['lifecycle.snooze_until_ts'] is None:
        out.add(('lifecycle.snooze_until_ts', 'coherence'))
    return out


number = (
    st.decimals(allow_nan=True, allow_infinity=True, min_value=None)
    | st.floats()
    | st.integers(-(10**14), 10**14)
    | st.sampled_from(
        [
            '',
            ' ',
            '12.34',
            ' 1.5E1 ',
            '0.1234565',
            '1e3',
            '+5',
            '.5',
            '7.',
            '1_0',
            'NaN',
            'inf',
            '0x1f',
            '12,5',
            '60.0',
            '1000000000000',
            '-1',
            'abc',
            None,
        ]
    )
)
moments = (
    st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1))
    | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
    | st.sampled_from(
        [
            '',
            None,
            '2026-11-24T06:00:00Z',
            '2026-11-24 06:00',
            '2026-11-24T08:30:00.5+02:30',
            '2026-02-30T00:00:00Z',
            'yesterday',
            '2026-11-24',
            '2026-11-24T06:00:00.123456789Z',
        ]
    )
)
days = st.dates(date(1970, 1, 1), date(2100, 1, 1)).map(str) | st.sampled_from(
    ['', None, '2026-02-30', '2026-1-1', 'soon', '20261124']
)


def values(f):
    if f.path == 'tenant_id':
        return st.sampled_from(['acme', 'globex', '', None])
    if f.kind == 'enum':
        return st.sampled_from([*f.allowed, f.allowed[0].upper(), f' {f.allowed[-1]} ', 'warn', '', None])
    kinds = {
        'text': word | st.none() | st.integers(0, 9),
        'money': number,
        'u8': number,
        'u16': number,
        'time': moments,
        'date': days,
        'text_map': st.none() | st.dictionaries(text, word, max_size=3),
        'money_map': st.none() | st.dictionaries(text, number, max_size=3),
        'texts': st.none() | st.lists(text, max_size=3),
        'links': st.none() | st.lists(st.fixed_dictionaries({'label': text, 'url': text}), max_size=2),
    }
    return kinds[f.kind]


@st.composite
def records(draw):
    record = json.loads(json.dumps(GOOD))
    for f in draw(
        st.lists(
            st.sampled_from([f for f in FIELDS if f.path not in ('finding_id', 'fingerprint', 'run_date')]),
            max_size=6,
            unique=True,
        )
    ):
        node = record
        *parents, leaf = f.path.split('.')
        for p in parents:
            node = node.setdefault(p, {})
        node[leaf] = draw(values(f))
    return record


def faults(stored):
    return {(r['row'], r['field'], r['rule']) for r in stored.rejects.to_pylist()}


@slow_ok
@given(st.lists(records(), min_size=1, max_size=12))
def test_validation_agrees_with_a_plain_reading_of_the_design(rows):
    stored = to_storage(rows, 'strict')
    assert faults(stored) == {(i, *fault) for i, r in enumerate(rows) for fault in opinion(r)}
    assert len(stored.table) == sum(not opinion(r) for r in rows)


@settings(deadline=None, max_examples=25)
@given(st.lists(records(), min_size=1, max_size=6))
def test_many_records_are_treated_as_each_alone(rows):
    together = to_storage(rows, 'strict', id_salt='')
    kept = iter(together.table.to_pylist())
    for i, r in enumerate(rows):
        alone = to_storage([r], 'strict', id_salt='')
        assert faults(alone) == {(0, f, rule) for j, f, rule in faults(together) if j == i}
        for row in alone.table.to_pylist():
            assert row == next(kept)
        if len(alone.table):
            assert build_ids_and_validate(r)['fingerprint'] == alone.table['fingerprint'][0].as_py()
        else:
            with pytest.raises(ValidationError) as e:
                build_ids_and_validate(r)
            assert {(f['field'], f['rule']) for f in e.value.faults} == opinion(r)


@settings(deadline=None, max_examples=100)
@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**11), max_value=10**11, places=None))
def test_money_is_exact_to_six_decimals_half_even(d):
    want = d.quantize(Decimal('0.000001'), ROUND_HALF_EVEN)
    for value in (d, str(d)):
        got = (
            to_storage([GOOD | {'estimated': {'one_time_savings': value}}])
            .table['estimated'][0]
            .as_py()['one_time_savings']
        )
        assert got == want, (value, got)


@settings(deadline=None, max_examples=50)
@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_times_are_utc_whatever_their_offset(t, minutes):
    local = (
        t + timedelta(minutes=minutes)
    ).isoformat() + f'{"-" if minutes < 0 else "+"}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}'
    row = GOOD | {'run_ts': local}
    stored = to_storage([row]).table
    assert stored['run_ts'][0].as_py() == t.replace(tzinfo=UTC)
    assert stored['run_date'][0].as_py() == t.date()


def test_nan_is_never_silently_unknown():
    for bad in (math.nan, math.inf, 'NaN'):
        assert faults(to_storage([GOOD | {'estimated': {'monthly_savings': bad}}])) == {
            (0, 'estimated.monthly_savings', 'type')
        }
        assert faults(to_storage([GOOD | {'metrics': {'n': bad}}])) == {(0, 'metrics', 'type')}

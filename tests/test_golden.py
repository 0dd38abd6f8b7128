"""Golden vectors: identity and wire cases that any implementation of this record must meet."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from finops_nb import ids
from finops_nb.contracts import ValidationError, build_ids_and_validate
from finops_nb.storage_cast import cast_for_storage, to_storage

DATA = Path(__file__).parent / 'data'
IDS = json.loads((DATA / 'ids.json').read_text())
WIRE = json.loads((DATA / 'wire_cases.json').read_text())


@pytest.mark.parametrize('v', IDS, ids=lambda v: v['name'])
def test_identity_of_one_record(v):
    key = dict(tenant_id=v['tenant_id'], check_id=v['check_id'], scope=v['scope'], issue_key=v['issue_key'])
    assert ids.canonical_issue(*key.values()).decode() == v['canonical']
    assert ids.compute_fingerprint(**key) == v['fingerprint']
    for salt, want in v['finding_id'].items():
        assert ids.compute_finding_id(tenant_id=v['tenant_id'], fingerprint=v['fingerprint'], id_salt=salt) == want


@pytest.mark.parametrize('v', IDS, ids=lambda v: v['name'])
@pytest.mark.parametrize('salt', ['', 'run-1', '2026-11-24'])
def test_identity_through_the_store(v, salt):
    record = set_path(WIRE['base'] | {k: v[k] for k in ('tenant_id', 'check_id')}, 'issue_key', v['issue_key']) | {
        'scope': v['scope']
    }
    stored = to_storage([record], 'strict', id_salt=salt)
    assert stored.rejects.to_pylist() == []
    assert stored.table['fingerprint'].to_pylist() == [v['fingerprint']]
    assert stored.table['finding_id'].to_pylist() == [v['finding_id'][salt]]


def set_path(record, path, value):
    head, _, rest = path.partition('.')
    return record | {head: set_path(record.get(head) or {}, rest, value) if rest else value}


def get_path(record, path):
    for part in path.split('.'):
        record = record[part]
    return record


def case_record(case):
    record = WIRE['base']
    for path, value in case['set'].items():
        record = set_path(record, path, value)
    return record


def shown(value):
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
    return value.isoformat() if isinstance(value, date) else value


@pytest.mark.parametrize('case', WIRE['cases'], ids=lambda c: c['name'])
def test_wire_case(case):
    record = case_record(case)
    stored = to_storage([record], WIRE['mode'])
    faults = {(r['field'], r['rule']) for r in stored.rejects.to_pylist()}
    assert faults == {(r['field'], r['rule']) for r in case.get('reject', [])}
    if 'reject' in case:
        with pytest.raises(ValidationError) as e:
            build_ids_and_validate(record)
        assert {(f['field'], f['rule']) for f in e.value.faults} == faults
        assert len(stored.table) == 0 and all(r['record'] for r in stored.rejects.to_pylist())
        return
    (row,) = stored.table.to_pylist(maps_as_pydicts='strict')
    assert {p: shown(get_path(row, p)) for p in case['accept']} == case['accept']
    typed = cast_for_storage(build_ids_and_validate(record), stored.table.schema)
    assert {p: shown(get_path(typed, p)) for p in case['accept'] if p != 'estimated.currency'} == {
        p: v for p, v in case['accept'].items() if p != 'estimated.currency'
    }


def test_all_wire_cases_in_one_table_are_as_precise_as_one_by_one():
    stored = to_storage([case_record(c) for c in WIRE['cases']], WIRE['mode'])
    want = {(i, r['field'], r['rule']) for i, c in enumerate(WIRE['cases']) for r in c.get('reject', [])}
    assert {(r['row'], r['field'], r['rule']) for r in stored.rejects.to_pylist()} == want
    assert len(stored.table) == sum('accept' in c for c in WIRE['cases'])


def test_wire_cases_as_an_arrow_table():
    cases = [
        c
        for c in WIRE['cases']
        if c['name'] not in ('a struct that is text', 'type: a struct that is text', 'strict: an unknown field')
    ]
    text = [to_text(case_record(c)) for c in cases]
    stored = to_storage(pa.Table.from_pylist(text), WIRE['mode'])
    assert {(r['row'], r['field'], r['rule']) for r in stored.rejects.to_pylist()} == {
        (i, r['field'], r['rule']) for i, c in enumerate(cases) for r in c.get('reject', [])
    }


def to_text(v):
    if isinstance(v, dict):
        return {k: to_text(x) for k, x in v.items()}
    return v if isinstance(v, list) or v is None else str(v)

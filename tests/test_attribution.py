"""Attribution against a second opinion in plain Python, and the promises about sums that no input may break."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finops_nb.actual_cost import with_actual
from finops_nb.attribution import Windows, attach_daily, match, prepare
from finops_nb.bill.coverage import CLASSES, coverage, evidence
from finops_nb.billed_ids import COLLECTED, attach_collected
from finops_nb.catalog import TABLES, connect
from finops_nb.charges import CHARGES
from finops_nb.storage_cast import to_storage

AS_OF = datetime(2026, 3, 12, 6, tzinfo=UTC)
ACCOUNTS = '111122223333', '222233334444'
VOLUMES = 'vol-00000001', 'vol-00000002', 'vol-00000003', ''
SUBJECT = pa.schema([
    ('row', pa.int64()),
    *((c, pa.string()) for c in (
        'account_id', 'region', 'service', 'resource_type', 'resource_id', 'resource_arn', 'covers')),
    ('tags', pa.map_(pa.string(), pa.string())),
])  # fmt: skip

slow = settings(deadline=None, max_examples=40)
amounts = st.decimals('-5', '50', places=9)
days = st.integers(0, 75).map(lambda n: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(n))


@st.composite
def charge(draw):
    "A day's charge of some volume, or of nothing, in some account"
    start, cost = draw(days), draw(amounts)
    return dict(
        sub_account_id=draw(st.sampled_from(ACCOUNTS)),
        resource_id=draw(st.sampled_from([*VOLUMES, None, 'i-never'])),
        charge_category=draw(st.sampled_from(['Usage', 'Usage', 'Usage', 'Tax', 'Credit'])),
        x_usage_type=draw(st.sampled_from(['EBS:VolumeUsage.gp3', 'DataTransfer-Out-Bytes', None])),
        commitment_discount_status=draw(st.sampled_from([None, None, 'Used'])),
        commitment_discount_id='sp-1',
        billing_currency='USD',
        billing_period_start=start.replace(day=1),
        charge_period_start=start,
        charge_period_end=start + timedelta(1),
        effective_cost=cost,
        contracted_cost=cost,
        list_cost=cost,
        billed_cost=cost,
    )


def world(charges, volumes=VOLUMES[:2]):
    "A database with an inventory of two volumes per account and a bill"
    con = connect()
    rows = {'ebs_volumes': [dict(account_id=a, region='eu-west-1', resource_id=v) for a in ACCOUNTS for v in volumes]}
    for name in COLLECTED:
        con.register(name, pa.Table.from_pylist(rows.get(name, []), schema=TABLES[name].schema))
    attach_collected(con)
    con.register('charges', pa.Table.from_pylist(charges, schema=CHARGES.schema))
    con.execute('create view tenant_charges as from charges')
    return con


def subjects(*pairs):
    rows = [dict(row=n, account_id=a, resource_type='ebs_volume', resource_id=v) for n, (a, v) in enumerate(pairs)]
    return pa.Table.from_pylist(rows, schema=SUBJECT)


def finding(account_id, volume, saving='2', cost='10'):
    return dict(
        tenant_id='acme',
        workspace_id='prod',
        run_id='r',
        run_ts=AS_OF,
        check_id='x',
        status='fail',
        scope=dict(
            cloud='aws',
            account_id=account_id,
            region='eu-west-1',
            service='AmazonEC2',
            resource_type='ebs_volume',
            resource_id=volume,
        ),
        estimated=dict(monthly_savings=saving, monthly_cost=cost, currency='USD', basis='list', confidence=60),
        severity=dict(level='low'),
        source=dict(schema_version=1),
    )


def plain_sum(charges, account, volume, start, end):
    "What a resource cost from one day to another, by hand"
    return sum(
        c['effective_cost']
        for c in charges
        if (c['sub_account_id'], c['resource_id']) == (account, volume)
        and c['charge_category'] == 'Usage'
        and start <= c['charge_period_start'].date() < end
    )


PAIRS = [(a, v) for a in ACCOUNTS for v in VOLUMES]


@slow
@given(st.lists(charge(), max_size=60))
def test_costs_are_what_adding_up_by_hand_gives(charges):
    if (bill := prepare(world(charges), AS_OF)) is None:
        return
    w = Windows.of(AS_OF)
    found = {r['row']: r for r in match(bill, subjects(*PAIRS)).to_arrow_table().to_pylist()}
    for n, (account, volume) in enumerate(PAIRS):
        windows = dict(
            cost_7d=(w.week, w.day),
            cost_30d=(w.month, w.day),
            cost_mtd=(w.mtd, w.day),
            cost_prev_month=(w.previous, w.mtd),
        )
        if not volume:
            assert n not in found  # an empty id matches nothing
        elif n in found:
            for name, (start, end) in windows.items():
                assert found[n][name] == plain_sum(charges, account, volume, start, end)
        else:
            assert not any(plain_sum(charges, account, volume, *x) for x in windows.values())


@slow
@given(st.lists(charge(), max_size=60), st.lists(st.sampled_from(PAIRS), min_size=1, max_size=12))
def test_attributed_cost_never_exceeds_the_bill_and_every_cent_has_one_class(charges, pairs):
    con = world(charges)
    if (bill := prepare(con, AS_OF)) is None:
        return
    attach_daily(con, bill.windows, 'tenant_charges')
    con.register('findings', with_actual(bill, to_storage([finding(*p) for p in pairs]).table))
    covered = coverage(con, bill.windows, [ACCOUNTS[0]], list(ACCOUNTS)).to_arrow_table().to_pylist()
    covered += coverage(con, bill.windows, [ACCOUNTS[1]], list(ACCOUNTS)).to_arrow_table().to_pylist()
    w = bill.windows
    total = sum(c['effective_cost'] for c in charges if w.month <= c['charge_period_start'].date() < w.day)
    assert sum(r['cost'] for r in covered) == pytest.approx(total, abs=Decimal('0.0001'))
    assert {r['class'] for r in covered} <= set(CLASSES)
    kept = evidence(con, w).to_arrow_table().to_pylist()
    slices = {tuple(r[k] for k in r if k not in ('finding_id', 'fingerprint', 'run_id')): r for r in kept}
    per_resource = sum(r['effective_cost'] for r in slices.values())
    days = {c['charge_period_start'].date() for c in charges if c['charge_category'] == 'Usage'}
    by_hand = {p: plain_sum(charges, *p, w.params['start'], w.day) for p in set(pairs) if p[1]}
    assert not days or per_resource == sum(by_hand.values())


@slow
@given(st.lists(charge(), max_size=40), st.sampled_from(PAIRS), st.integers(1, 4))
def test_a_cost_does_not_depend_on_how_many_findings_or_runs_there_are(charges, pair, copies):
    con = world(charges)
    if (bill := prepare(con, AS_OF)) is None:
        return
    alone = with_actual(bill, to_storage([finding(*pair)]).table)['actual'].to_pylist()[0]
    many = with_actual(bill, to_storage([finding(*pair)] * copies + [finding(*p) for p in PAIRS]).table)
    assert many['actual'].to_pylist()[:copies] == [alone] * copies
    again = prepare(con, AS_OF)  # a second run over the same store
    assert with_actual(again, to_storage([finding(*pair)]).table)['actual'].to_pylist() == [alone]


@slow
@given(st.lists(charge(), max_size=60))
def test_a_saving_never_exceeds_its_cost_and_no_row_is_lost(charges):
    before = to_storage([finding(*p) for p in PAIRS if p[1]]).table
    after = with_actual(prepare(world(charges), AS_OF), before)
    assert after.schema == before.schema and len(after) == len(before)
    assert after['fingerprint'] == before['fingerprint']
    for e in after['estimated'].to_pylist():
        assert e['monthly_savings'] <= e['monthly_cost'] or e['monthly_cost'] < 0
        assert e['basis'] in ('billed', 'contracted', 'list')


@slow
@given(st.lists(st.decimals('0', '50', places=9), min_size=1, max_size=20), st.integers(1, 7))
def test_shares_of_a_tag_never_add_up_to_more_than_there_is(costs, owners):
    charges = [
        dict(
            sub_account_id=ACCOUNTS[0],
            x_service_code='AmazonEC2',
            tags=[('user:Owner', 'web')],
            charge_category='Usage',
            billing_currency='USD',
            effective_cost=c,
            charge_period_start=datetime(2026, 3, 1 + n % 10, tzinfo=UTC),
        )
        for n, c in enumerate(costs)
    ]
    con = world(charges, [])
    tagged = [
        dict(account_id=ACCOUNTS[0], region='eu-west-1', resource_id=f'vol-{n}', tags=[('owner', 'web')])
        for n in range(owners)
    ]
    con.register('ebs_volumes', pa.Table.from_pylist(tagged, schema=TABLES['ebs_volumes'].schema))
    bill = prepare(con, AS_OF, 'owner')
    assert bill is not None
    rows = [
        dict(r, row=n, service='AmazonEC2', resource_type='ebs_volume', resource_arn='', covers=None)
        for n, r in enumerate(tagged)
    ]
    found = match(bill, pa.Table.from_pylist(rows, schema=SUBJECT)).to_arrow_table().to_pylist()
    assert len(found) == owners and {r['method'] for r in found} == {'tag'}
    total, shared = sum(costs), sum(r['cost_30d'] for r in found)
    assert total - owners * Decimal('0.000001') <= shared <= total


def test_windows_meet_without_gap_or_overlap():
    w = Windows.of(datetime(2026, 1, 1, tzinfo=UTC))
    assert (w.previous, w.mtd, w.day) == (date(2025, 12, 1), date(2026, 1, 1), date(2026, 1, 1))
    for n in range(400):
        w = Windows.of(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(n))
        assert w.previous < w.mtd <= w.day and w.week == w.day - timedelta(7) and w.month < w.week


def test_another_accounts_charges_are_not_this_findings():
    cost = dict(charge_category='Usage', billing_currency='USD', effective_cost=Decimal(9), resource_id=VOLUMES[0])
    start = datetime(2026, 3, 2, tzinfo=UTC)
    con = world([cost | dict(sub_account_id=ACCOUNTS[1], charge_period_start=start)])
    assert match(prepare(con, AS_OF), subjects((ACCOUNTS[0], VOLUMES[0]))).to_arrow_table().num_rows == 0

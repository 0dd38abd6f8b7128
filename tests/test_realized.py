"""Realized savings: never more than was paid, whatever the grain of the bill and whoever else is on it."""
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from finops_nb.catalog import connect
from finops_nb.charges import CHARGES
from finops_nb.realized import RESOLVED, realized_savings, resolved_between
from finops_nb.storage_cast import to_storage

ACCOUNT, OTHER = '111122223333', '999900001111'
ID, ARN = 'i-0a1b2c3d', f'arn:aws:ec2:eu-west-1:{ACCOUNT}:instance/i-0a1b2c3d'
FIRST = date(2026, 9, 1)
BOX, OUT = 'EU-BoxUsage:m5.large', 'EU-DataTransfer-Out-Bytes'


def charge(start, length, cost, **rest):
    start = datetime.combine(start, datetime.min.time(), UTC) if not isinstance(start, datetime) else start
    return dict(sub_account_id=ACCOUNT, resource_id=ID, x_usage_type=BOX, charge_category='Usage',
                billing_currency='USD', effective_cost=cost, charge_period_start=start,
                charge_period_end=start + length) | rest


def one(resolved_on=date(2026, 11, 20), **rest):
    row = dict(fingerprint='f', account_id=ACCOUNT, billed_ids=[ID, ARN], resolved_on=resolved_on, currency='USD',
               estimated_monthly_savings=Decimal(10))
    return pa.Table.from_pylist([row | rest], schema=RESOLVED)


def realized(charges, resolved, as_of):
    con = connect()
    con.register('charges', pa.Table.from_pylist(list(charges), schema=CHARGES.schema))
    return realized_savings(con, resolved, as_of).to_pylist()


days = st.integers(0, 110).map(lambda n: FIRST + timedelta(n))
amounts = st.integers(-500, 5000).map(lambda n: Decimal(n) / 100)
daily = st.builds(lambda day, cost, usage, status, name: charge(day, timedelta(1), cost, x_usage_type=usage,
                                                                commitment_discount_status=status, resource_id=name),
                  days, amounts, st.sampled_from([BOX, BOX, OUT]), st.sampled_from([None, None, 'Used']),
                  st.sampled_from([ID, ID, ARN, 'i-other']))
finding = st.builds(one, st.dates(date(2026, 10, 1), date(2026, 12, 15)),
                    last_seen_on=st.none() | st.dates(date(2026, 9, 25), date(2026, 12, 15)),
                    estimated_monthly_savings=st.none() | st.integers(0, 900).map(Decimal))
clocks = st.datetimes(datetime(2026, 12, 15), datetime(2026, 12, 31)).map(lambda t: t.replace(tzinfo=UTC))


# --- the figures -------------------------------------------------------------------------------------------------

def by_hand(charges, found, as_of):
    "The same question answered day by day"
    asked = found.to_pylist()[0]
    gone = asked['resolved_on']
    seen = min(asked['last_seen_on'] or gone, gone)
    covered = {c['charge_period_start'].date() for c in charges if c['charge_category'] == 'Usage'}
    covered = {d for d in covered if d < as_of.date()}
    open_, used, named = defaultdict(Decimal), defaultdict(Decimal), set()
    for c in charges:
        day = c['charge_period_start'].date()
        if c['sub_account_id'] != ACCOUNT or c['resource_id'] not in (ID, ARN): continue
        named.add(day)
        if c['x_usage_type'] == BOX: (used if c['commitment_discount_status'] else open_)[day] += c['effective_cost']
    before = {d for d in covered if seen - timedelta(30) <= d < seen}
    after = {d for d in covered if d > gone}
    answer = {}
    for month in sorted({(d.year, d.month) for d in (gone + timedelta(n) for n in range(120)) if d < as_of.date()}
                        | {(gone.year, gone.month)}):
        these = {d for d in after if (d.year, d.month) == month}
        known = len(before) >= 7 and before & named and these
        saved = None
        if known:
            scale = Decimal(len(these)) / len(before)
            fall = sum(open_[d] for d in before) * scale - sum(open_[d] for d in these)
            saved = min(fall, sum(open_[d] + used[d] for d in before) * scale)
        if not (len(before) >= 7 and before & named): status = 'unknown'
        elif not these or len(after) < 7: status = 'not_yet'
        else: status = None
        answer[date(*month, 1)] = (len(before), len(these), saved, status)
    return answer


@settings(max_examples=40, deadline=None)
@given(st.lists(daily, min_size=20, max_size=120), finding, clocks)
def test_realized_savings_are_what_counting_day_by_day_gives(charges, found, as_of):
    expected = by_hand(charges, found, as_of)
    rows = realized(charges, found, as_of)
    assert [r['month_start'] for r in rows] == list(expected)
    for r in rows:
        days_before, n, saved, status = expected[r['month_start']]
        assert (r['days_before'], r['days']) == (days_before, n)
        assert (r['realized_savings'] is None) == (saved is None)
        if saved is not None: assert abs(r['realized_savings'] - saved) <= Decimal('0.000002')
        if status: assert r['status'] == status
        else: assert r['status'] in ('verified', 'partly', 'contradicted')


@settings(max_examples=40, deadline=None)
@given(st.lists(daily, min_size=20, max_size=120), finding, clocks)
def test_realized_never_exceeds_what_the_resource_cost_before(charges, found, as_of):
    for r in realized(charges, found, as_of):
        if r['realized_savings'] is None: continue
        assert r['realized_savings'] <= r['cost_before']
        cost = sum((c['effective_cost'] for c in charges if c['effective_cost'] > 0), Decimal(0))
        assert r['realized_savings'] <= cost * 31


@settings(max_examples=25, deadline=None)
@given(st.lists(daily, min_size=30, max_size=120), finding, clocks, st.data())
def test_charges_of_others_do_not_matter(charges, found, as_of, data):
    "Other accounts, other resources, no resource and other currencies, on days that the bill has anyway"
    alien = data.draw(st.lists(st.builds(
        lambda c, change, cost: c | change | dict(effective_cost=cost), st.sampled_from(charges),
        st.sampled_from([dict(sub_account_id=OTHER), dict(resource_id='i-9'), dict(resource_id=None),
                         dict(resource_id=''), dict(billing_currency='EUR')]), amounts), max_size=30))
    tax = [charge(FIRST, timedelta(30), Decimal(99), charge_category='Tax'),
           charge(FIRST, timedelta(90), Decimal(-7), charge_category='Credit')]
    assert realized([*charges, *alien, *tax], found, as_of) == realized(charges, found, as_of)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=4, max_size=4), st.lists(st.sampled_from('mdh'), min_size=4, max_size=4),
       st.integers(1, 28))
def test_months_days_and_hours_of_one_bill_give_one_answer(rates, grains, day):
    "Four months at a rate of millionths of a dollar an hour; any month may come in months, days or hours"
    edges = [date(2026, m, 1) for m in (9, 10, 11, 12)] + [date(2027, 1, 1)]
    def bill(grains):
        for rate, grain, since, until in zip(rates, grains, edges, edges[1:], strict=False):
            hours = {'m': (until - since).days * 24, 'd': 24, 'h': 1}[grain]
            start = datetime.combine(since, datetime.min.time(), UTC)
            for n in range((until - since).days * 24 // hours):
                yield charge(start + timedelta(hours=n * hours), timedelta(hours=hours),
                             Decimal(rate * hours) / 1_000_000)
    as_of, found = datetime(2027, 1, 1, 6, tzinfo=UTC), one(date(2026, 11, day))
    days, mixed = realized(bill('dddd'), found, as_of), realized(bill(grains), found, as_of)
    assert [r['days'] for r in days] == [30 - day, 31]
    for a, b in zip(days, mixed, strict=True):
        money = [k for k, v in a.items() if isinstance(v, Decimal)]
        assert {k: v for k, v in a.items() if k not in money} == {k: v for k, v in b.items() if k not in money}
        for k in money: assert abs(a[k] - b[k]) <= Decimal('0.000002')


def test_the_order_of_the_findings_and_their_number_do_not_matter():
    charges = [charge(FIRST + timedelta(n), timedelta(1), Decimal(3)) for n in range(60)]
    charges += [c | dict(resource_id='i-2', effective_cost=Decimal(5)) for c in charges]
    a, b = one(date(2026, 10, 10)), one(date(2026, 10, 12), fingerprint='g', billed_ids=['i-2', 'i-2', ''])
    as_of = datetime(2026, 10, 31, 6, tzinfo=UTC)
    both = realized(charges, pa.concat_tables([b, a]), as_of)
    assert both == realized(charges, a, as_of) + realized(charges, b, as_of)
    assert {r['standing_before_daily'] for r in both} == {Decimal(3), Decimal(5)}    # an id given twice counts once


def test_a_day_without_a_bill_is_unknown_and_not_free():
    "The volume costs 3 a day and goes on; the bill has a hole of ten days after the resolution"
    days = [FIRST + timedelta(n) for n in range(80)]
    hole = [d for d in days if not date(2026, 10, 15) <= d < date(2026, 10, 25)]
    (row, _) = realized([charge(d, timedelta(1), Decimal(3)) for d in hole], one(date(2026, 10, 14)),
                        datetime(2026, 11, 19, 6, tzinfo=UTC))
    assert (row['days'], row['realized_savings'], row['status']) == (7, 0, 'contradicted')   # 25th to 31st


def test_no_resolved_finding_gives_no_row():
    assert realized([], RESOLVED.empty_table(), datetime(2026, 10, 31, tzinfo=UTC)) == []


# --- which are resolved ------------------------------------------------------------------------------------------

def finding_of(name, region='eu-west-1', account=ACCOUNT, status='fail', check_id='aws.a'):
    return dict(tenant_id='acme', workspace_id='prod', run_id='r', run_ts=datetime(2026, 11, 23, 6, tzinfo=UTC),
                check_id=check_id, status=status, severity=dict(level='low'), source=dict(schema_version=1),
                scope=dict(cloud='aws', account_id=account, region=region, service='AmazonEC2',
                           resource_type='ebs_volume', resource_id=name))


def gone(older, newer, gaps=(), error=None, check_id='aws.a'):
    con = connect()
    for view, found in (('older', older), ('newer', newer)): con.register(view, to_storage(found).table)
    places = [[ACCOUNT, 'eu-west-1'], [ACCOUNT, 'us-east-1'], [OTHER, 'eu-west-1']]
    manifest = dict(as_of='2026-11-24T06:00:00Z', checks=[
        dict(check_id=check_id, error=error, places=places, unknown=list(map(list, gaps)))])
    return [r['resource_id'] for r in resolved_between(con, 'older', 'newer', manifest).to_pylist()]


def test_what_the_newer_run_looked_for_and_did_not_find_is_resolved():
    assert gone([finding_of('vol-1'), finding_of('vol-2')], [finding_of('vol-2')]) == ['vol-1']
    assert gone([finding_of('vol-1')], [finding_of('vol-1', status='pass')]) == ['vol-1']     # it looked: all is well


def test_what_the_newer_run_could_not_see_is_not_resolved():
    volume = [finding_of('vol-1')]
    assert gone(volume, [], gaps=[(ACCOUNT, 'eu-west-1')]) == []
    assert gone(volume, [], gaps=[(OTHER, 'eu-west-1'), (ACCOUNT, 'us-east-1')]) == ['vol-1']  # gaps elsewhere
    assert gone(volume, [], error='TimeoutError: no answer') == []
    assert gone(volume, [], check_id='aws.b') == []                                     # another set of checks
    assert gone([finding_of('vol-1', region='ap-east-1')], []) == []                    # a region nobody asked
    assert gone([finding_of('vol-1', account='000011112222')], []) == []                # an account that was dropped
    assert gone(volume, [finding_of('vol-1', status='unknown')]) == []


def test_a_finding_without_a_region_needs_every_place_of_its_account():
    account = [finding_of('AmazonS3', region='global')]
    assert gone(account, []) == ['AmazonS3']
    assert gone(account, [], gaps=[(ACCOUNT, 'us-east-1')]) == []
    assert gone(account, [], gaps=[(OTHER, 'eu-west-1')]) == ['AmazonS3']


def test_only_what_was_wrong_can_be_resolved():
    assert gone([finding_of('vol-1', status='unknown'), finding_of('vol-2', status='pass')], []) == []


def test_the_answer_is_what_realized_savings_takes():
    con = connect()
    for view, found in (('older', [finding_of('vol-0a1b2c3d')]), ('newer', [])):
        con.register(view, to_storage(found).table)
    manifest = dict(as_of='2026-11-24T06:00:00Z', checks=[
        dict(check_id='aws.a', error=None, places=[[ACCOUNT, 'eu-west-1']], unknown=[])])
    con.register('charges', pa.Table.from_pylist(
        [charge(date(2026, 11, 1) + timedelta(n), timedelta(1), Decimal(n < 23), resource_id='vol-0a1b2c3d')
         for n in range(40)], schema=CHARGES.schema))
    resolved = resolved_between(con, 'older', 'newer', manifest)
    rows = realized_savings(con, resolved, datetime(2026, 12, 8, tzinfo=UTC)).to_pylist()
    assert [(r['days'], r['realized_savings'], r['status']) for r in rows] == [
        (6, 6, 'verified'), (7, 7, 'verified')]       # 1.00 a day: 25th to 30th, and a week of December

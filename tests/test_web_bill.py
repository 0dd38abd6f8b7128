"""The bill page and its JSON: exact numbers, older exports, any nonsense in `bill`, other tenants."""
import csv
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finops_nb.gold_bill import PARTS
from finops_nb.published import Store
from finops_nb.sample_export import publish, sample_bill, sample_findings, sample_summary
from finops_nb.web import create_app

TABLES = {t: sample_findings(t) for t in ('acme', 'globex')}
DAY = datetime(2026, 11, 24, 8, tzinfo=UTC)
PAGE, API = '/t/acme/bill', '/api/v1/tenants/acme/bill'
ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}'


@pytest.fixture
def webapp(tmp_path):
    for table in TABLES.values(): publish(tmp_path, table, 'x1', summary=sample_summary(table, 'x1'))
    return tmp_path


@pytest.fixture
def web(webapp): return create_app(webapp, TABLES, now=lambda: DAY).test_client()


@pytest.fixture
def show(webapp, web, monkeypatch):
    "A client for which the summary of acme has this `bill`, without writing an export"
    current = Store.current
    export, failed = current(Store(webapp, TABLES), 'acme')

    def with_bill(bill):
        summary = export.summary | dict(bill=bill)
        monkeypatch.setattr(Store, 'current', lambda self, tenant: (replace(export, summary=summary), failed)
                            if tenant == 'acme' else current(self, tenant))
        return web
    return with_bill


def bill(**changes): return sample_bill(TABLES['acme']) | changes
def seen(page): return ' '.join(unescape(re.sub(r'<[^>]+>', ' ', page)).split())
def amounts(row): return [f'{Decimal(row[k]):,.2f}'.replace('-', '−') for k in ('total', *PARTS) if k in row]


def test_every_row_of_the_summary_is_on_the_page_with_its_numbers(web):
    text, published = seen(web.get(PAGE).text), web.get('/api/v1/tenants/acme/summary').json['bill']
    for row in (*published['by_service'], *published['by_account']):
        shown = ' '.join([row['key'], *amounts(row)])
        if Decimal(row['total']) > 1: assert shown in text, shown
    for r in published['periods']:
        assert f"{r['charge_category']} {r['rows']:,} " in text
    assert 'Cost of 25 Oct – 23 Nov 2026' in text and '29 of 30' in text and 'arn:aws:savingsplans' in text


def test_the_parts_of_a_bar_are_the_parts_of_its_total(web):
    page = web.get(PAGE).text
    hero = re.search(r'<svg class="stacked parts" width="100%" height="16".*?</svg>', page)[0]
    total = web.get(API).json['bill']['totals'][0]
    bars = re.findall(r'class="part-(\w+)" x="([\d.]+)%" width="([\d.]+)%"', hero)
    at = 0
    for part, x, width in bars:
        assert float(x) == pytest.approx(at, abs=.02)
        assert float(width) == pytest.approx(float(100 * Decimal(total[part]) / Decimal(total['total'])), abs=.01)
        at += float(width)
    assert [b[0] for b in bars] == list(PARTS)[:5] and at == pytest.approx(100, abs=.05)
    for svg in re.findall(r'<svg class="stacked.*?</svg>', page):
        assert sum(float(w) for w in re.findall(r'width="([\d.]+)%"', svg)[1:]) <= 100.05  # a credit makes no bar


def test_page_overview_and_json_say_the_same_share(web):
    share = web.get(API).json['looked_at']
    assert share == [dict(currency='USD', percent='72.9')]   # (24,317.65 + 27,091.31) of 70,476.18
    assert 'Looked at 72.9 %' in seen(web.get(PAGE).text)
    overview = web.get('/t/acme/')
    assert "Of the last 30 days' cost, 72.9 % was looked at." in seen(overview.text)
    assert f'href="{PAGE}"' in overview.text


@pytest.mark.parametrize('nothing', [None, [], 'x', 7, True])
def test_without_a_bill_the_page_says_how_to_load_one(show, nothing):
    web = show(nothing)
    r = web.get(PAGE)
    assert r.status_code == 200
    text = seen(r.text)
    assert 'No bill is loaded' in text and 'bill = s3://' in text and 'finops-nb bill load' in text
    assert web.get(API).json['bill'] is None
    assert 'No bill is loaded' in seen(web.get('/t/acme/').text)
    assert 'Cost, 30 days' not in seen(web.get('/t/acme/findings').text)


def test_an_export_older_than_bills_is_shown(webapp):
    summary = sample_summary(TABLES['acme'], 'x2')
    del summary['bill']
    publish(webapp, TABLES['acme'], 'x2', summary=summary)
    web = create_app(webapp, ['acme'], now=lambda: DAY).test_client()
    assert [web.get(p).status_code for p in (PAGE, API, '/t/acme/', '/t/acme/findings')] == [200] * 4
    assert 'No bill is loaded' in seen(web.get(PAGE).text)


@pytest.mark.parametrize('member', list(bill()))
def test_a_member_that_is_missing_is_unknown_and_not_zero(show, member):
    part = bill()
    del part[member]
    r = show(part).get(PAGE)
    assert r.status_code == 200
    if member not in ('notes', 'window_start', 'window_end'):
        assert re.search('unknown', seen(r.text), re.I), member
    assert show(part).get('/t/acme/').status_code == 200
    assert 'NaN' not in r.text and 'None' not in r.text


def test_columns_that_are_missing_are_unknown(show):
    row = dict(key='S3', currency='USD', total='5')
    text = seen(show(bill(by_service=[row], totals=[row])).get(PAGE).text)
    assert 'S3 5.00 unknown unknown unknown unknown unknown unknown' in text
    assert 'Looked at unknown' in text


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
                    | st.sampled_from(['1e400', '-5', '12.5', 'NaN', '2026-10', ATTACK]),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
                    max_leaves=6)
ROW = st.dictionaries(st.sampled_from([
    'key', 'currency', 'total', *PARTS, 'billing_period', 'export', 'dialect', 'charge_category', 'rows',
    'source_total', 'charges_total', 'difference', 'basis', 'findings', 'monthly_savings', 'used', 'unused',
    'utilization_percent',
    'commitment_discount_id', 'commitment_discount_type']), JSON, max_size=12)
ODD = st.fixed_dictionaries({}, optional={k: JSON | st.lists(ROW | JSON, max_size=4) for k in bill()})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ODD)
def test_no_bill_breaks_a_page(show, odd):
    web = show(odd)
    for path in (PAGE, API, '/t/acme/'):
        r = web.get(path)
        assert r.status_code == 200
        assert path == API or not re.search('<script|<img', r.text)
    assert isinstance(json.loads(web.get(API).text)['mismatches'], list)


def poisoned(value):
    if isinstance(value, dict): return {k: poisoned(v) for k, v in value.items()}
    if isinstance(value, list): return [poisoned(v) for v in value]
    return ATTACK if isinstance(value, str) and not re.match(r'-?[\d.]+$', value) else value


def test_every_text_of_a_bill_is_escaped(show):
    hostile = poisoned(bill())
    hostile['periods'][0] |= dict(difference='5', billing_period=ATTACK)
    web = show(hostile)
    for path in (PAGE, '/t/acme/'):
        r = web.get(path)
        assert r.status_code == 200
        assert not re.search(r'<script|<img|onerror=alert\(1\)>|\b49\b', r.text), path
    assert '&lt;script&gt;' in web.get(PAGE).text and web.get(API).json['bill'] == hostile


@pytest.mark.parametrize('off, told', [('0.01', '0.01 USD'), ('-1234.5', '−1,234.50 USD'), ('0.0099', None)])
def test_a_difference_to_the_invoice_stands_above_everything(show, off, told):
    changed = bill()
    r = changed['periods'][2]
    r |= dict(difference=off, charges_total=str(Decimal(r['source_total']) + Decimal(off)))
    web = show(changed)
    above, _, below = web.get(PAGE).text.partition('<main')
    assert ('role="alert"' in above and told in seen(above) and 'Oct 2026, Usage' in seen(above)) is bool(told)
    assert ('verdict-differs' in below) is bool(told)
    found = web.get(API).json['mismatches']
    assert [(m['billing_period'], m['charge_category']) for m in found] == ([('2026-10', 'Usage')] if told else [])
    assert ('differs from the invoice' in web.get('/t/acme/').text) is bool(told)


def test_a_difference_in_an_old_period_is_not_folded_away(show):
    old = [dict(billing_period=f'2025-{m:02}', export='bill', currency='USD', charge_category='Usage', rows=1,
                source_total='1', charges_total='1', difference='2' if m == 1 else '0') for m in range(1, 13)]
    page = show(bill(periods=old)).get(PAGE).text
    open_part = page[page.index('id="invoice"'):].partition('<details')[0]
    assert 'Jan 2025' in open_part and 'Dec 2025' in open_part and 'Mar 2025' not in open_part
    assert '8 more billing periods' in page


def test_parts_that_do_not_add_up_are_shown_as_unexplained(show):
    totals = bill()['totals']
    totals[0]['total'] = str(Decimal(totals[0]['total']) + 100)
    text = seen(show(bill(totals=totals)).get(PAGE).text)
    assert re.search(r'Unexplained 0\.1 % 100\.00 USD', text)
    assert 'Unexplained' not in seen(show(bill()).get(PAGE).text)


def test_one_tenants_bill_is_not_on_anothers_page(web):
    for mine, theirs in (('acme', 'globex'), ('globex', 'acme')):
        foreign = {r['key'] for r in web.get(f'/api/v1/tenants/{theirs}/bill').json['bill']['by_account']}
        currency = {'acme': 'USD', 'globex': 'EUR'}[theirs]
        for path in (f'/t/{mine}/bill', f'/api/v1/tenants/{mine}/bill', f'/t/{mine}/'):
            text = web.get(path).text
            assert not any(a in text for a in foreign) and currency not in text, path
    unknown = [web.get(p.replace('acme', 'nobody')) for p in (PAGE, API)]
    assert [r.status_code for r in unknown] == [404, 404]


def test_etags_follow_the_bill_and_staleness(webapp):
    clock = [DAY]
    web = create_app(webapp, TABLES, now=lambda: clock[0]).test_client()
    first = web.get(API)
    tag = first.headers['ETag']
    def status(path=API): return web.get(path, headers={'If-None-Match': tag}).status_code
    assert re.fullmatch('"[0-9a-f]{32}"', tag) and first.headers['Cache-Control'] == 'private, no-cache'
    assert status() == 304
    assert [status(p) for p in ('/api/v1/tenants/globex/bill', '/api/v1/tenants/acme/summary')] == [200, 200]
    clock[0] += timedelta(days=2)
    assert status() == 200 and web.get(API).json['stale'] is True
    clock[0] -= timedelta(days=2)
    assert status() == 304
    summary = sample_summary(TABLES['acme'], 'x1')
    summary['bill']['totals'][0]['never_seen'] = '0.000001'
    publish(webapp, TABLES['acme'], 'x1', summary=summary)   # the same findings, another bill
    assert status() == 200


def test_unknown_parameters_are_refused(web):
    for path in (PAGE, API):
        assert web.get(path + '?tenant_id=globex').status_code == 400


def test_a_finding_shows_what_its_resource_cost_and_how_that_is_known(web):
    for f in web.get('/api/v1/tenants/acme/findings?basis=billed&limit=40&sort=-actual').json['findings']:
        text, actual = seen(web.get(f"/t/acme/findings/{f['fingerprint']}").text), f['actual']
        costs = [f"{Decimal(actual[f'cost_{k}']):,.2f} USD" for k in ('30d', '7d', 'mtd', 'prev_month')]
        assert 'Actual cost {} in 30 days 7 days {} Month to date {} Previous month {}'.format(*costs) in text
        keys, = actual['attribution']['matched_keys']
        assert f"confidence {actual['attribution']['confidence']} %. Matched by {keys}" in text
        assert keys == f['scope']['resource_id'] or keys.startswith('Name=')
        assert 'effective, daily charges' in text and '25 Oct – 23 Nov 2026' in text and 'Basis the bill' in text
    other, = web.get('/api/v1/tenants/acme/findings?basis=none&limit=1').json['findings']
    text = seen(web.get(f"/t/acme/findings/{other['fingerprint']}").text)
    assert 'The bill names no charge of it.' in text and 'No price was known' in text


def test_the_basis_is_a_filter_of_page_json_and_csv(web):
    totals = {b['basis']: b for b in web.get(API).json['bill']['savings_by_basis']}
    assert set(totals) == {'billed', 'contracted', 'list', 'none'}
    for basis, said in totals.items():
        query = dict(status='fail', basis=basis)
        t, = web.get('/api/v1/tenants/acme/findings', query_string=query).json['totals']
        assert (t['findings'], t['monthly_savings']) == (said['findings'], said['monthly_savings'])
        found = list(csv.DictReader(io.StringIO(web.get('/t/acme/findings.csv', query_string=query).text)))
        assert len(found) == said['findings'] and {r['estimated_basis'] for r in found} == {basis}
        on_bill = basis in ('billed', 'contracted')
        assert all(bool(r['actual_cost_30d']) is on_bill for r in found)
        assert {r['actual_attribution_method'] for r in found} <= (
            {'exact_resource_id', 'tag'} if on_bill else {'none'})


def test_a_bill_that_could_not_be_read_is_said_with_and_without_an_older_one(webapp, web, monkeypatch):
    current = Store.current
    export, failed = current(Store(webapp, TABLES), 'acme')
    broken = [dict(workspace_id='prod', bill_error=f'a.csv is cut off. {ATTACK}')]
    for known in (bill(), None):
        summary = export.summary | dict(bill=known, runs=broken)
        monkeypatch.setattr(Store, 'current', lambda self, tenant, s=summary: (replace(export, summary=s), failed))
        page = web.get(PAGE)
        assert page.status_code == 200 and 'a.csv is cut off.' in seen(page.text)
        assert '<script>alert(1)' not in page.text


def test_warnings_of_the_bill_are_on_its_page(show):
    told = [dict(billing_period='2026-10', export='bill', text='3 lines are there more than once, for 0.30.'), 'x', {}]
    text = seen(show(bill(warnings=told)).get(PAGE).text)
    assert 'Oct 2026: 3 lines are there more than once' in text

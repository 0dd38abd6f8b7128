"""The web app where it must not give way: other tenants, damaged exports, swaps under load, hostile text."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from finops_nb import gold
from finops_nb.published import Pool, Store, load_export
from finops_nb.sample_export import publish, sample_findings, sample_summary
from finops_nb.web import create_app, routes

ACME, GLOBEX = sample_findings('acme'), sample_findings('globex')
DAY = datetime(2026, 11, 24, 8, tzinfo=UTC)
API = '/api/v1/tenants/acme'
TENANT_ROUTES = ['/t/{}/', '/t/{}/findings', '/t/{}/findings.csv', '/t/{}/findings/' + 'a' * 64,
                 '/api/v1/tenants/{}/summary', '/api/v1/tenants/{}/top_savings', '/api/v1/tenants/{}/findings',
                 '/api/v1/tenants/{}/findings/' + 'a' * 64, '/api/v1/tenants/{}/exports/findings.parquet',
                 '/t/{}/bill', '/api/v1/tenants/{}/bill']


@pytest.fixture
def webapp(tmp_path):
    publish(tmp_path, ACME, 'x1')
    publish(tmp_path, GLOBEX, 'x1')
    return tmp_path


@pytest.fixture
def web(webapp): return create_app(webapp, ['acme', 'globex'], now=lambda: DAY).test_client()


def body(response):
    "Text of an error without what differs between any two requests"
    return re.sub('[0-9a-f]{16}', '', response.text)


def test_the_list_of_tenant_routes_is_complete(webapp):
    rules = [r.split(' -> ')[0] for r in routes(create_app(webapp, ['acme']))]
    named = {re.sub('<fingerprint>|<name>', '', r) for r in rules if '<tenant_id>' in r}
    tried = {re.sub('a{64}|findings.parquet$', '', t.format('<tenant_id>')) for t in TENANT_ROUTES}
    assert tried == named


@pytest.mark.parametrize('route', TENANT_ROUTES)
def test_no_spelling_reaches_another_tenant(web, route):
    unknown = web.get(route.format('nobody'))
    assert unknown.status_code == 404
    for name in ('ac*', 'a%3fme', '[a]cme', '*', '..', '.', '%2e%2e', 'acme%00', 'ACME', '%20acme',
                 'acme%2f..%2fglobex', '..%2fglobex', 'acme..', "acme'--", '%ff', 'acme%0d%0aX:y', '\uff41cme'):
        r = web.get(route.format(name))
        assert (r.status_code, body(r)) == (404, body(unknown)), name
    for path in (route.format('acme/../globex'), route.format('acme//globex'), '/' + route.format('../globex')):
        assert web.get(path).status_code in (400, 404), path


def test_a_foreign_fingerprint_is_as_unknown_as_an_invented_one(web):
    theirs = GLOBEX['fingerprint'][0].as_py()
    for path in ('/t/acme/findings/{}', '/api/v1/tenants/acme/findings/{}'):
        foreign, invented = web.get(path.format(theirs)), web.get(path.format('f' * 64))
        assert (foreign.status_code, body(foreign)) == (404, body(invented))
        assert theirs not in foreign.text
    assert web.get(f'/t/globex/findings/{theirs}').status_code == 200
    assert web.get(f'/api/v1/tenants/acme/findings?q={theirs}').json['total'] == 0
    for account in {a.as_py() for a in GLOBEX['scope_account_id']}:
        assert web.get(f'/api/v1/tenants/acme/findings?account={account}').json['total'] == 0


def test_a_cursor_of_another_tenant_opens_nothing(web):
    cursor = web.get('/api/v1/tenants/globex/findings?limit=5').json['next_cursor']
    assert web.get(f'/api/v1/tenants/acme/findings?limit=5&cursor={cursor}').status_code == 410


def test_a_folder_with_another_tenants_export_is_not_shown(webapp):
    for name in ('current.json', 'exports/x1/findings.parquet'):
        (webapp/'acme'/name).write_bytes((webapp/'globex'/name).read_bytes())
    r = create_app(webapp, ['acme']).test_client().get('/api/v1/tenants/acme/findings')
    assert (r.status_code, r.json['type']) == (503, '/problems/export-unreadable')
    assert 'globex' not in r.text


@pytest.mark.parametrize('text', ['%', '_', "'", "' or 1=1 --", '\\', '$q', '*', '?', '"', '\x00', '\ud7ff', 'É'])
def test_what_is_typed_is_only_looked_for(web, text):
    for path in (f'{API}/findings', '/t/acme/findings', '/t/acme/findings.csv'):
        for name in ('q', 'region', 'check'): assert web.get(path, query_string={name: text}).status_code == 200
    if text not in ('_', '"'): assert web.get(f'{API}/findings', query_string=dict(q=text)).json['total'] == 0
    assert web.get(f'{API}/findings').json['total'] == 192


def poisoned(value, attack):
    "A summary in which every text is hostile, except numbers, times and names of fields"
    if isinstance(value, dict): return {k: poisoned(v, attack) for k, v in value.items()}
    if isinstance(value, list): return [poisoned(v, attack) for v in value]
    return attack if isinstance(value, str) and not re.match(r'[\d.]+$|2026', value) else value


def test_every_text_of_a_finding_is_escaped(webapp):
    attack = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}'
    columns = {n: ACME[n] for n in ACME.column_names}
    n = len(ACME)
    for name in ('title', 'message', 'recommendation', 'remediation', 'estimated_notes', 'category', 'scope_region',
                 'scope_service', 'scope_resource_arn', 'check_id', 'workspace_id', 'estimated_currency',
                 'severity_level', 'estimated_basis', 'actual_attribution_method', 'actual_model_cost_model',
                 'actual_model_granularity', 'actual_model_currency', 'lifecycle_status', 'run_id', 'scope_account_id'):
        columns[name] = pa.array([attack] * n)
    for name in ('tags', 'dimensions'): columns[name] = pa.array([[(attack, attack)]] * n, ACME[name].type)
    columns['actual_attribution_matched_keys'] = pa.array([[attack, attack]] * n)
    links = [dict(label=attack, url='https://x/' + attack), dict(label='bad', url='javascript:alert(1)')]
    columns['links'] = pa.array([links] * n, ACME['links'].type)
    summary = poisoned(sample_summary(ACME, 'x2'), attack) | dict(tenant_id='acme')
    publish(webapp, pa.table(columns), 'x2', summary=summary)
    web = create_app(webapp, ['acme'], now=lambda: DAY).test_client()
    fingerprint = ACME['fingerprint'][0].as_py()
    for path in ('/', '/t/acme/', '/t/acme/findings', '/t/acme/bill', f'/t/acme/findings/{fingerprint}'):
        r = web.get(path)
        assert r.status_code == 200
        assert not re.search(r'<script|<img|onerror=alert\(1\)>|href="javascript|\b49\b.*alert', r.text), path
    assert '&lt;script&gt;' in r.text
    assert web.get('/t/acme/findings', query_string=dict(region=attack, q=attack)).status_code == 200


def test_errors_leak_nothing(web, webapp, monkeypatch):
    def broken(*args, **kw): raise ValueError(f'secret {webapp}')
    monkeypatch.setattr(gold, 'page', broken)
    for path in ('/t/acme/findings', '/api/v1/tenants/acme/findings'):
        r = web.get(path)
        assert r.status_code == 500
        assert 'secret' not in r.text and str(webapp) not in r.text and 'ValueError' not in r.text
        assert r.headers['X-Request-Id'] in r.text
    for path in (f'{API}/nothing', '/api/v1/<script>', '/nothing/<script>', '/t/acme/findings?x=<script>',
                 '/static/../web.py', '/static/%2e%2e/web.py'):
        r = web.get(path)
        assert r.status_code in (400, 404) and '<script' not in r.text, path
        assert (r.content_type == 'application/problem+json') == path.startswith('/api/')


def test_only_reading_is_possible(web):
    for path in ('/', *[t.format('acme') for t in TENANT_ROUTES]):
        for method in ('post', 'put', 'patch', 'delete'):
            r = getattr(web, method)(path)
            assert r.status_code == 405 and 'GET' in r.headers['Allow']
    assert web.head('/t/acme/').status_code == 200


def test_only_loopback_names_are_answered(web):
    for host in ('evil.test', 'localhost.evil.test', '127.0.0.1.evil.test', '169.254.169.254', 'a b'):
        for path in ('/', '/api/v1/tenants', '/healthz'):
            r = web.get(path, headers={'Host': host})
            assert r.status_code == 400 and 'acme' not in r.text, host
    for host in ('localhost', 'localhost:8050', '127.0.0.1:1', '[::1]:8050'):
        assert web.get('/', headers={'Host': host}).status_code == 200


def test_every_answer_is_guarded(web):
    for path in ('/', '/t/acme/', '/t/nobody/', '/api/v1/tenants', '/api/v1/x', '/healthz', '/static/app.css',
                 '/t/acme', '/t/acme/findings.csv'):
        with web.get(path) as r:
            csp = r.headers['Content-Security-Policy']
            assert "default-src 'self'" in csp and "script-src 'none'" in csp and 'unsafe' not in csp
            assert r.headers['X-Content-Type-Options'] == 'nosniff'
    mine = ACME['fingerprint'][0].as_py()
    for path in ('/', '/t/acme/', '/t/acme/findings', f'/t/acme/findings/{mine}', '/t/acme/bill', '/t/nobody/'):
        page = web.get(path).text
        assert not re.search(r'\sstyle=|<style|<script|\son\w+=|src="http|href="//', page)


def test_etags_follow_content_question_and_staleness(webapp):
    clock = [DAY]
    web = create_app(webapp, ['acme', 'globex'], now=lambda: clock[0]).test_client()
    url = '/api/v1/tenants/acme/findings?limit=5'
    tag = web.get(url).headers['ETag']
    assert re.fullmatch('"[0-9a-f]{32}"', tag)
    def status(path=url, tag=tag): return web.get(path, headers={'If-None-Match': tag}).status_code
    assert status() == 304 and status(tag=f'W/{tag}') == 304 and status(tag='"x", ' + tag) == 304
    assert status(tag='"x"') == 200
    assert status('/api/v1/tenants/acme/findings?limit=6') == 200
    assert status('/api/v1/tenants/globex/findings?limit=5') == 200
    publish(webapp, ACME, 'x1')
    assert status() == 304                       # the same bytes again
    clock[0] += timedelta(days=2)
    assert status() == 200                       # now it is stale, and says so
    clock[0] -= timedelta(days=2)
    publish(webapp, ACME.slice(1), 'x2')
    assert status() == 200
    data = webapp/'acme'/'exports'/'x2'/'findings.parquet'
    times = data.stat()
    publish(webapp, ACME.slice(2), 'x3')
    os.utime(webapp/'acme'/'exports'/'x3'/'findings.parquet', ns=(times.st_atime_ns, times.st_mtime_ns))
    assert web.get(url).json['total'] == 190


def test_a_damaged_export_leaves_the_one_before(webapp, web):
    assert web.get('/api/v1/tenants/acme/findings').json['stale'] is False
    folder = publish(webapp, ACME.slice(0, 50), 'x2')
    for name in ('findings.parquet', 'summary.json', 'top_savings.json.gz'):
        good = (folder/name).read_bytes()
        for bad in (good[:-1], good[:len(good) // 2], b'', good[:-1] + bytes([good[-1] ^ 1])):
            (folder/name).write_bytes(bad)
            r = web.get('/api/v1/tenants/acme/findings')
            assert (r.status_code, r.json['export_id'], r.json['stale']) == (200, 'x1', True), (name, len(bad))
            page = web.get('/t/acme/')
            assert page.status_code == 200 and 'A newer export exists but is not readable' in page.text
            assert web.get('/api/v1/tenants/acme/summary').headers['X-Finops-Stale'] == 'true'
            assert web.get('/api/v1/tenants/globex/findings').json['stale'] is False
            assert create_app(webapp, ['acme']).test_client().get('/api/v1/tenants/acme/findings').status_code == 503
        (folder/name).write_bytes(good)
    r = web.get('/api/v1/tenants/acme/findings')
    assert (r.json['export_id'], r.json['stale'], r.json['total']) == ('x2', False, 50)


def test_a_file_damaged_after_its_check_is_an_error_and_not_an_answer(webapp, web):
    web.get('/api/v1/tenants/acme/summary')
    (webapp/'acme'/'exports'/'x1'/'findings.parquet').write_bytes(b'PAR1' * 100)
    for path in ('/t/acme/findings', '/api/v1/tenants/acme/findings'):
        r = web.get(path)
        assert (r.status_code, r.headers['Retry-After']) == (503, '5')
    (webapp/'acme'/'exports'/'x1'/'top_savings.json').unlink()
    assert web.get('/api/v1/tenants/acme/top_savings').status_code == 503


def test_totals_are_those_of_the_summary(web):
    summary = web.get('/api/v1/tenants/acme/summary').json
    for name in ('severity', 'service', 'account', 'region', 'check', 'workspace', 'category'):
        for row in summary[f'by_{name}']:
            found, = web.get(f'{API}/findings', query_string={'status': 'fail', name: row['key']}).json['totals']
            assert found == {k: row[k] for k in found}, (name, row['key'])


def test_threads_get_their_own_answers(webapp):
    store, wrong = Store(webapp, ['acme', 'globex']), []
    expected = {t: len(sample_findings(t)) for t in ('acme', 'globex')}
    def ask(n):
        for i in range(25):
            t = ('acme', 'globex')[(n + i) % 2]
            db = store.pool.cursor(store.current(t)[0])
            rows = db.execute('select tenant_id, count(*) from findings group by all').fetchall()
            db.close()
            if rows != [(t, expected[t])]: wrong.append((t, rows))
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert wrong == []


FORK = """
import os, sys
from pathlib import Path
from finops_nb.published import Pool, load_export
pool = Pool()
export = load_export(Path(sys.argv[1]), 'acme', pool)
ask = lambda: pool.cursor(export).execute('select count(*) from findings').fetchall()
assert ask() == [(192,)]
if not (pid := os.fork()): os._exit(0 if ask() == [(192,)] else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_forked_from_one_that_asked_can_ask(webapp):
    assert subprocess.run([sys.executable, '-c', FORK, str(webapp)], timeout=30).returncode == 0


def test_the_pool_is_bounded(webapp):
    pool = Pool(limit=1)
    for t in ('acme', 'globex', 'acme'):
        db = pool.cursor(load_export(webapp, t, pool))
        assert db.execute('select distinct tenant_id from findings').fetchall() == [(t,)]
    assert len(pool._open) == 1


SERVE = """
import sys
from datetime import timedelta
from finops_nb.web import create_app, serve
app = create_app(sys.argv[1], ['acme', 'globex'], max_age=timedelta(days=99999))
serve(app, port=int(sys.argv[2]), ready=lambda url: print(url, flush=True))
"""


@pytest.fixture
def server(webapp, tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with open(home/'log', 'wb') as log:
        p = subprocess.Popen([sys.executable, '-c', SERVE, str(webapp), str(port)], stdout=subprocess.PIPE, stderr=log,
                             text=True, env=os.environ | {'HOME': str(home)})
        try:
            assert p.stdout.readline() == f'http://127.0.0.1:{port}/\n', (home/'log').read_text()
            yield port, home
        finally:
            p.send_signal(signal.SIGINT)
            p.wait(10)
            p.stdout.close()
    assert p.returncode == 0
    assert sorted(x.name for x in home.iterdir()) == ['log']   # no control socket in the home folder


def fetch(c, path):
    c.request('GET', path)
    r = c.getresponse()
    return r.status, r.read()


@pytest.mark.slow
def test_readers_see_whole_exports_while_they_are_swapped(server, webapp):
    port, home = server
    size, bad, reads, done = {'x1': 192}, [], [], threading.Event()
    def read(n):
        c = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
        paths = [f'{API}/findings?limit=3&sort=title', f'{API}/summary', '/t/acme/findings?size=25',
                 '/api/v1/tenants/globex/findings?limit=1']
        while not done.is_set():
            path = paths[(n + len(reads)) % 4]
            status, data = fetch(c, path)
            reads.append(path)
            if status != 200: bad.append((path, status, data[:200]))
            elif 'acme/findings?limit' in path:
                j = json.loads(data)
                if (j['total'], j['stale']) != (size[j['export_id']], False): bad.append((j['export_id'], j['total']))
            elif 'summary' in path:
                j = json.loads(data)
                if j['counts']['findings'] != size[j['export_id']]: bad.append((j['export_id'], j['counts']))
            elif 'globex' in path and json.loads(data)['export_id'] != 'x1': bad.append(data[:200])
        c.close()
    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for t in threads: t.start()
    end, n = time.monotonic() + 4, 1
    while time.monotonic() < end:
        n += 1
        size[f'x{n}'] = 192 - n
        publish(webapp, ACME.slice(0, 192 - n), f'x{n}')
        time.sleep(.1)
    done.set()
    for t in threads: t.join()
    assert bad == []
    assert n > 5 and len(reads) > 20
    rows = [json.loads(line) for line in (home/'log').read_text().splitlines()]
    assert len(rows) >= len(reads)
    seen = {(r['route'], r['tenant']) for r in rows}
    assert seen >= {('/t/<tenant_id>/findings', 'acme'), ('/api/v1/tenants/<tenant_id>/summary', 'acme')}
    assert 'sort=title' not in (home/'log').read_text()


@pytest.mark.slow
def test_the_served_app_keeps_going_through_damage(server, webapp):
    port, _ = server
    c = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    assert fetch(c, '/healthz')[0] == fetch(c, '/readyz')[0] == fetch(c, '/t/acme/')[0] == 200
    whole = (webapp/'acme'/'current.json').read_bytes()
    for damage in (whole[:99], b'', b'{}', b'[' * 100_000):
        (webapp/'acme'/'current.json').write_bytes(damage)
        status, data = fetch(c, '/api/v1/tenants/acme/findings?limit=1')
        assert (status, json.loads(data)['stale']) == (200, True)
    (webapp/'acme'/'current.json').unlink()
    assert json.loads(fetch(c, '/api/v1/tenants/acme/findings?limit=1')[1])['stale'] is True
    (webapp/'acme'/'current.json').write_bytes(whole)
    assert json.loads(fetch(c, '/api/v1/tenants/acme/findings?limit=1')[1])['stale'] is False
    c.close()

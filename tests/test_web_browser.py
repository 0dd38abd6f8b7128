"""The pages in real headless Chromium: what a reader clicks, and that the browser finds nothing to complain about."""
import shutil
import threading
from datetime import UTC, datetime

import pytest
from werkzeug.serving import make_server

from finops_nb.sample_export import HOSTILE, publish, sample_findings, sample_summary
from finops_nb.web import create_app

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('chromium-browser'), shutil.which('chromedriver')
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='chromium or chromedriver is missing')]
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage')
ACME = sample_findings('acme')
HOOLI = ACME.set_column(0, 'tenant_id', [['hooli'] * len(ACME)])


def difficult_bill():
    "A summary whose bill differs from the invoice and has two currencies, long names, many rows and unknowns"
    summary = sample_summary(ACME, 'x1') | dict(tenant_id='hooli')
    bill = summary['bill']
    bill['periods'][0] |= dict(charges_total='47187.778204', difference='-12.340000')
    bill['periods'] += [bill['periods'][3] | dict(billing_period=f'2026-{m:02}', difference=None, charges_total=None)
                        for m in range(1, 10)]
    bill['totals'].append(dict(currency='JPY', total='123456789012345.12', never_seen='900'))
    bill['by_service'] += [dict(key='Marketplace' * 12 + str(i), currency='JPY', total='123456789012345.12',
                                never_seen='-900') for i in range(14)]
    bill['commitments'].append(dict(commitment_discount_id='arn:aws:ec2:' + 'x' * 90))
    bill['notes'].append('longword' * 40)
    return summary


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    webapp = tmp_path_factory.mktemp('webapp')
    publish(webapp, ACME, 'x1')
    publish(webapp, sample_findings('globex'), 'x1', summary={})
    publish(webapp, HOOLI, 'x1', summary=difficult_bill())
    morning = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
    app = create_app(webapp, ['acme', 'globex', 'hooli', 'initech'], now=lambda: morning)
    server = make_server('127.0.0.1', 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"): options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    "The browser at 1280 x 900 and light; after the test its console must be empty"
    view(driver)
    driver.get_log('browser')
    yield driver
    assert driver.get_log('browser') == []


def view(driver, width=1280, scheme='light'):
    screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    media = dict(features=[dict(name='prefers-color-scheme', value=scheme)])
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media)


def one(driver, css): return driver.find_element('css selector', css)
def every(driver, css): return driver.find_elements('css selector', css)
def texts(driver, css): return [e.text for e in every(driver, css)]
def click(driver, words): follow(driver, driver.find_element('partial link text', words))


def follow(driver, element):
    "Click and wait for the page behind it"
    from selenium.webdriver.support.ui import WebDriverWait
    before = driver.current_url
    element.click()
    loaded = 'return document.readyState === "complete"'
    WebDriverWait(driver, 10).until(lambda d: d.current_url != before and d.execute_script(loaded))


def test_from_the_total_to_the_command(browser, base):
    browser.get(base)
    assert texts(browser, 'tbody tr')[1::2] == ['globex unknown unknown unknown unknown 2 hours old',
                                              'initech nothing published yet']
    click(browser, 'acme')
    assert one(browser, '.big').text == '28,471.59 USD'
    assert 'counted once' in one(browser, '.hero').text
    click(browser, 'aws.ec2.graviton')
    assert browser.current_url.endswith('/t/acme/findings?status=fail&check=aws.ec2.graviton')
    assert one(browser, '.count').text.startswith('22 findings')
    follow(browser, one(browser, '.findings .name a'))
    assert 'h x (0.1920 - 0.1540) USD/h' in one(browser, '.formula').text
    assert '--instance-type m7g.xlarge' in one(browser, '.command').text
    assert 'not added' in one(browser, 'tr.this').text


def test_filters_sorting_and_pages_live_in_the_address(browser, base):
    browser.get(f'{base}/t/acme/findings')
    assert one(browser, '.pager p').text == '1–50 of 192'
    click(browser, 'Next')
    assert browser.current_url.endswith('findings?page=2') and one(browser, '.pager p').text == '51–100 of 192'
    click(browser, 'medium')
    click(browser, 'AmazonVPC')
    assert browser.current_url.endswith('findings?severity=medium&service=AmazonVPC')
    assert one(browser, '.count').text.startswith('24 findings')
    assert set(texts(browser, 'tbody .sev .chip:first-child')) == {'medium'}
    first = texts(browser, '.findings tbody .num:last-child')
    assert first == sorted(first, key=lambda t: -float(t.split()[0].replace(',', '')))
    click(browser, 'Saving a month')
    assert one(browser, '[aria-sort]').get_attribute('aria-sort') == 'ascending'
    assert texts(browser, '.findings tbody .num:last-child')[0] == first[-1]
    browser.back()
    assert texts(browser, '.findings tbody .num:last-child') == first
    click(browser, 'Clear all')
    assert one(browser, '.count').text.startswith('192 findings')
    assert set(texts(browser, '.findings tbody .num:last-child .unknown')) <= {'not estimated'}


def test_search_finds_a_hostile_tag_and_shows_it(browser, base):
    browser.get(f'{base}/t/acme/findings?status=fail')
    one(browser, '#q').send_keys(HOSTILE.upper())
    follow(browser, one(browser, '.search button'))
    assert one(browser, '.count').text.startswith('8 findings')
    assert one(browser, '#q').get_attribute('value') == HOSTILE.upper()
    follow(browser, one(browser, '.findings .name a'))
    assert HOSTILE in texts(browser, '.pairs td')
    assert every(browser, 'script') == []


def test_nothing_matches_and_past_the_end(browser, base):
    browser.get(f'{base}/t/acme/findings?q=zzz')
    assert one(browser, '.empty h2').text == 'Nothing matches'
    browser.get(f'{base}/t/acme/findings?page=99')
    assert one(browser, '.empty h2').text == 'This page is past the end'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 1000, 768, 390, 360])
def test_pages_fit(browser, base, width, scheme):
    view(browser, width, scheme)
    finding = ACME['fingerprint'][0].as_py()
    for path in ('/', '/t/acme/', '/t/globex/', '/t/acme/findings', f'/t/acme/findings/{finding}',
                 '/t/acme/findings?q=zzz', '/t/acme/bill', '/t/globex/bill', '/t/hooli/bill', '/t/hooli/'):
        browser.get(base + path)
        fits = 'let e = document.documentElement; return e.scrollWidth <= e.clientWidth'
        assert browser.execute_script(fits), path
        red = browser.execute_script('return Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])')
        assert red < 60 if scheme == 'dark' else red > 230
        assert every(browser, '[style]') == [] and len(every(browser, 'h1')) == 1


def test_the_bill_from_the_share_to_the_findings(browser, base):
    browser.get(f'{base}/t/acme/')
    assert "cost, 72.9 % was looked at" in one(browser, '.strip').text
    click(browser, 'Where the rest is')
    assert one(browser, '.tabs [aria-current]').text == 'Bill' and every(browser, '[role=alert]') == []
    assert texts(browser, '.legend h3') == ['With findings 34.5 %', 'Looked at, fine 38.4 %', 'Nobody looked 11 %',
                                            'No resource 9.5 %', 'No workspace 6.5 %']
    click(browser, 'Negotiated prices')
    assert browser.current_url.endswith('findings?status=fail&basis=contracted')
    assert one(browser, '.count').text.startswith('19 findings')
    assert 'basis of saving\nnegotiated prices' in one(browser, '.chosen').text


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_parts_of_the_bill_can_be_told_apart(browser, base, scheme):
    "Adjacent colours of a bar differ clearly, each is the colour of its legend, and bars lie side by side"
    view(browser, 1280, scheme)
    browser.get(f'{base}/t/acme/bill')
    def rgb(css, prop):
        style = f"getComputedStyle(document.querySelector('{css}')).{prop}"
        return browser.execute_script(f'return {style}.match(/[0-9.]+/g).slice(0, 3).map(Number)')
    parts = [e.get_attribute('class') for e in every(browser, '.bill-hero rect')]
    assert len(parts) == 5
    colours = [rgb(f'.bill-hero rect.{p}', 'fill') for p in parts]
    assert colours == [rgb(f'.legend .dot.{p}', 'backgroundColor') for p in parts]
    for i, a in enumerate(colours):
        for b in colours[i + 1:]: assert sum((x - y)**2 for x, y in zip(a, b, strict=True))**.5 > 60, (a, b)
    boxes = browser.execute_script("return [...document.querySelectorAll('.bill-hero rect')]"
                                   ".map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().right])")
    for (_, right), (left, _) in zip(boxes, boxes[1:], strict=False): assert abs(left - right) < 4


def test_the_bill_is_readable_without_colours(browser, base):
    "Every table has a caption or a heading, every number a column heading, every section a name of its own"
    browser.get(f'{base}/t/hooli/bill')
    assert one(browser, '[role=alert]').text.startswith('Our copy of the bill differs from the invoice.')
    assert '−12.34 USD' in one(browser, '[role=alert]').text
    names = browser.execute_script(
        "return [...document.querySelectorAll('section')].map(e => document.getElementById("
        "e.getAttribute('aria-labelledby')).textContent.trim())")
    assert len(names) == len(set(names)) and all(names)
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    for table in every(browser, 'main table'):
        head = len(table.find_elements('css selector', 'thead th[scope=col]'))
        for row in table.find_elements('css selector', 'tbody tr'):
            cells = row.find_elements('css selector', 'th[scope], td')
            assert len(cells) == head and len(row.find_elements('css selector', 'th[scope]')) == 1
    assert every(browser, 'main svg:not([aria-hidden=true])') == []


def test_the_bill_on_a_phone_keeps_every_number_that_is_not_zero(browser, base):
    view(browser, 360)
    browser.get(f'{base}/t/acme/bill')
    for row in every(browser, '.split-table tbody tr'):
        for cell in row.find_elements('css selector', 'td'):
            assert cell.is_displayed() is ('zero' not in cell.get_attribute('class').split())
    outside = ("return [...document.querySelectorAll('main a, main td, main svg')].filter("
               "e => { let r = e.getBoundingClientRect(); return r.left < 0 || r.right > 360 })")
    assert browser.execute_script(outside) == []


def test_the_filters_open_on_a_small_screen(browser, base):
    view(browser, 390)
    browser.get(f'{base}/t/acme/findings')
    assert not one(browser, '.filters .facet').is_displayed()
    click(browser, 'Filters')
    follow(browser, one(browser, '.filters .facet'))
    assert browser.current_url.endswith('findings?status=fail')
    assert not one(browser, '.filters .facet').is_displayed()
    view(browser)
    assert one(browser, '.filters .facet').is_displayed()


def test_the_keyboard_reaches_the_content_and_the_header_stays(browser, base):
    from selenium.webdriver.common.keys import Keys
    browser.get(f'{base}/t/acme/findings?size=100')
    one(browser, 'body').send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == 'Skip to content'
    browser.execute_script('window.scrollTo(0, 2000)')
    top = "return document.querySelector('.findings thead th').getBoundingClientRect().top"
    assert browser.execute_script(top) == 0


def test_the_console_would_tell_and_no_script_can_run(driver, base):
    driver.get(f'{base}/t/acme/')
    driver.get_log('browser')
    driver.execute_script("let s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                          "document.body.append(s); document.body.setAttribute('style', 'color: red')")
    assert driver.execute_script('return window.ran') is None
    told = ' '.join(entry['message'] for entry in driver.get_log('browser'))
    assert 'script-src' in told and 'style-src' in told

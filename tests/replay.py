"""Recorded answers of AWS, replayed through real boto3 clients and the real collectors. No network, no emulator.

`tests/data/recordings/<name>/<endpoint prefix>.<Operation>_<n>.json` are Cloud Custodian's (Apache-2.0, LICENSE beside
them): `{"status_code": ..., "data": {...}}`, the n-th answer to that operation. Three things are not in them and are
made here: `GetCallerIdentity` and `DescribeRegions` (one region, switched on); `GetMetricData`, from the recorded
`GetMetricStatistics`; and an error `NotRecorded` for every other operation, which a collector reports as `failed`."""
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

from botocore.awsrequest import AWSResponse
from botocore.credentials import Credentials

from finops_nb.aws import new_session
from finops_nb.catalog import TABLES, connect
from finops_nb.collect.snapshot import collect_snapshot
from finops_nb.settings import Account

RECORDINGS = Path(__file__).parent / 'data' / 'recordings'
AS_OF = datetime(2026, 11, 24, 6, tzinfo=UTC)


def _as_time(o):
    if o.get('__class__') != 'datetime': return o
    parts = 'year', 'month', 'day', 'hour', 'minute', 'second', 'microsecond'
    return datetime(*(o.get(k, 0) for k in parts), tzinfo=UTC)


def _found(o, key):
    "Every value of `key` in a nested answer, in order"
    if isinstance(o, dict):
        for k, v in o.items():
            if k == key: yield v
            yield from _found(v, key)
    elif isinstance(o, list):
        for v in o: yield from _found(v, key)


class Replay:
    """One recording as an account. `connect` makes its sessions, `calls` lists what was asked.

    `empty` names operations, e.g. 'elb.DescribeLoadBalancers', that answer "nothing there" without a recording."""

    def __init__(self, name, account_id, region, empty=()):
        self.folder, self.account_id, self.region, self.empty = RECORDINGS / name, account_id, region, set(empty)
        self.times, self.calls = {}, []
        assert self.folder.is_dir(), f'no recording {name}'

    def connect(self, account, run_id):
        session = new_session(credentials=Credentials('x', 'x'))
        session.events.register('before-parameter-build', lambda params, context, **kw: context.update(asked=params))
        session.events.register('before-call', self.answer)
        session.events.register('before-send.cloudwatch-logs', self.answer_on_the_wire)
        return session

    def answer(self, model, context, **kw):
        "botocore's answer, parsed; None lets a request go on to `answer_on_the_wire`"
        service, operation = model.service_model.service_name, model.name
        self.calls.append(f'{service}.{operation}')
        if operation == 'GetCallerIdentity': status, data = 200, {'Account': self.account_id}
        elif operation == 'DescribeRegions':
            status, data = 200, {'Regions': [{'RegionName': self.region, 'OptInStatus': 'opt-in-not-required'}]}
        elif service == 'logs' and any(self.folder.glob('logs.*')): return None
        elif operation == 'GetMetricData' and any(self.folder.glob('monitoring.*')):
            status, data = 200, self.metric_data(context['asked'])
        else: status, data = self.recorded(service, model.service_model.endpoint_prefix, operation, model.output_shape)
        return SimpleNamespace(status_code=status, raw=None), data | {'ResponseMetadata': {'HTTPStatusCode': status}}

    def recorded(self, service, prefix, operation, shape=None):
        "The next answer to an operation, from the first again when they run out"
        files = sorted(self.folder.glob(f'{prefix}.{operation}_*.json'), key=lambda p: int(p.stem.rpartition('_')[2]))
        n = self.times[service, operation] = self.times.get((service, operation), -1) + 1
        answer = json.loads(files[n % len(files)].read_text(), object_hook=_as_time) if files else None
        # elb and elbv2 share a prefix: an answer with none of the operation's fields is the other one's
        if answer and (not shape or answer['data'].keys() & (shape.members.keys() | {'Error'})):
            return answer['status_code'], answer['data']
        if f'{service}.{operation}' in self.empty: return 200, {}
        return 501, {'Error': {'Code': 'NotRecorded', 'Message': f'{self.folder.name} has no {service}.{operation}'}}

    def answer_on_the_wire(self, request, **kw):
        "CloudWatch Logs as bytes, so that botocore's own retries see the recorded throttling"
        operation = request.headers['X-Amz-Target'].decode().rpartition('.')[2]
        status, data = self.recorded('logs', 'logs', operation)
        if error := data.get('Error'): data = {'__type': error['Code'], 'message': error.get('Message', '')}
        body = json.dumps({k: v for k, v in data.items() if k != 'ResponseMetadata'}).encode()
        headers = {'content-type': 'application/x-amz-json-1.1'}
        return AWSResponse(request.url, status, headers, SimpleNamespace(stream=lambda *a, **kw: [body]))

    def metric_data(self, asked):
        """GetMetricData from recorded GetMetricStatistics: the n-th resource of the listing has the n-th recording.

        One recording holds one metric (`Label`) and statistic; that statistic answers whichever is asked for. Nothing
        recorded for a metric means no datapoints, so a test must not read "AWS said zero" into it."""
        files = sorted(self.folder.glob('monitoring.GetMetricStatistics_*.json'))
        answers = [json.loads(f.read_text(), object_hook=_as_time)['data'] for f in files]
        listed = [json.loads(f.read_text()) for f in sorted(self.folder.glob('*.Describe*_1.json'))]
        results = []
        for query in asked['MetricDataQueries']:
            stat, [dimension] = query['MetricStat'], query['MetricStat']['Metric']['Dimensions']
            n = list(dict.fromkeys(_found(listed, dimension['Name']))).index(dimension['Value']) if listed else 0
            is_recorded = n < len(answers) and answers[n]['Label'] == stat['Metric']['MetricName']
            points = answers[n]['Datapoints'] if is_recorded else []
            days = {}
            for p in points:
                [value] = [p[s] for s in ('Sum', 'Average', 'Maximum') if s in p] or [None]
                if value is not None and asked['StartTime'] <= p['Timestamp'] < asked['EndTime']:
                    days.setdefault(p['Timestamp'].timestamp() // stat['Period'], []).append(value)
            combine = {'Sum': sum, 'Average': mean, 'Maximum': max}[stat['Stat']]
            values = [combine(v) for v in days.values()]
            results.append({'Id': query['Id'], 'StatusCode': 'Complete', 'Values': values,
                            'Timestamps': [asked['StartTime']] * len(values)})
        return {'MetricDataResults': results}


def collect_recording(
        name, tables, account_id='644160558196', region='us-east-1', *, as_of=AS_OF, empty=(), replay=None):
    """A DuckDB database in which every catalog table is filled from a recording, as a check's `ctx.db`.

    tables: the tables to collect (with 'metrics' for their metrics); the others are there and empty. Collected by the
    real `collect_snapshot` into a temporary folder. `empty`: see Replay. `replay`: a Replay to look at afterwards."""
    replay = replay or Replay(name, account_id, region, empty)
    db = connect()
    with tempfile.TemporaryDirectory() as folder, connect() as views:
        account = Account(account_id)
        snapshot = collect_snapshot([account], folder, 'acme', 'prod', 'recording', as_of, 'replay', tables=set(tables),
                                    connect=replay.connect)
        snapshot.attach(views)
        for table in TABLES: db.from_arrow(views.sql(f'from {table}').to_arrow_table()).create(table)
    return db

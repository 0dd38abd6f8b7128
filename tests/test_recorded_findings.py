"""What AWS really answered, through the real collectors, shipped prices and checks: the findings of expected.csv."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from replay import collect_recording

from finops_nb.checks.base import installed_checks, load_checker
from finops_nb.checks.query import REFERENCE
from finops_nb.contracts import RunContext
from finops_nb.prices import attach, shipped_book

AS_OF = datetime(2026, 11, 24, 6, tzinfo=UTC)


def findings(check_id, name, tables, region='us-east-1', as_of=AS_OF, empty=(), params=None):
    "(resource id, status, saving rounded to cents) of one check over one recording"
    db = collect_recording(name, tables, region=region, as_of=as_of, empty=empty)
    for table in REFERENCE - {'coverage'}:
        db.execute(f'drop table {table}')  # empty ones of the recording
    attach(shipped_book(), db)
    ctx = RunContext('acme', 'prod', 'r1', as_of, db, {check_id: params or {}})
    rows = load_checker(installed_checks()[check_id]).run(ctx).to_arrow_table().to_pylist()
    return [
        (
            r['scope.resource_id'],
            r['status'],
            None if r['estimated.monthly_savings'] is None else round(r['estimated.monthly_savings'], 2),
        )
        for r in rows
    ]


def dollars(text):
    return Decimal(text)


def test_gp2_savings_equal_what_the_cost_optimization_hub_said_to_the_cent():
    assert findings('aws.ebs.gp2_to_gp3', 'cost_opt_hub_ebs', ['ebs_volumes']) == [
        ('vol-01269f6008ec7a865', 'fail', dollars('0.24')),
        ('vol-01d020e75fb456422', 'fail', dollars('0.64')),
    ]  # the gp3 one is not


def test_unattached_volumes():
    found = findings('aws.ebs.volume_unattached', 'test_ebs_volume_query', ['ebs_volumes'])
    assert [f[1:] for f in found] == [
        ('fail', dollars('8.00')),
        ('fail', dollars('16.00')),
    ]  # 100 and 200 GiB gp3 x 0.08


def test_unattached_volume_with_provisioned_iops():
    found = findings('aws.ebs.volume_unattached', 'test_ebs_metrics_percent_filter', ['ebs_volumes'])
    assert [f[1:] for f in found] == [('fail', dollars('337.50'))]  # 100 GiB x 0.125 + 5,000 IOPS x 0.065


def test_unattached_volume_among_every_old_type():
    found = findings('aws.ebs.volume_unattached', 'test_ebs_modifyable_filter', ['ebs_volumes', 'ec2_instances'])
    assert [f[1:] for f in found] == [('fail', dollars('73.00'))]  # io1: 64 GiB x 0.125 + 1,000 IOPS x 0.065


def test_snapshots_whose_volume_is_gone_and_no_image_uses():
    found = findings(
        'aws.ebs.snapshot_orphaned',
        'test_ebs_snapshot_unused',
        ['ebs_snapshots', 'ec2_images', 'ebs_volumes'],
        empty=['ec2.DescribeVolumes'],
    )
    assert [f[:2] for f in found] == [
        ('snap-0b818bbec5eebac4c', 'fail'),
        ('snap-0bf9e1af959fbdddf', 'fail'),
    ]  # not the one behind the image


def test_snapshots_of_volumes_that_exist_are_only_old():
    tables = ['ebs_snapshots', 'ebs_volumes', 'ec2_images']
    assert (
        findings('aws.ebs.snapshot_orphaned', 'test_ebs_volume_snapshots_filter', tables, empty=['ec2.DescribeImages'])
        == []
    )
    old = findings('aws.ebs.snapshot_old', 'test_ebs_volume_snapshots_filter', tables, empty=['ec2.DescribeImages'])
    assert [f[1] for f in old] == ['fail']  # of three: the newest of each of the two volumes is kept


def test_an_idle_address_and_two_that_are_used():
    found = findings(
        'aws.eip.unassociated',
        'test_eip_used_by',
        ['elastic_ips', 'ec2_instances'],
        region='us-west-2',
        empty=['ec2.DescribeInstances'],
    )
    assert [f[1:] for f in found] == [('fail', dollars('3.65'))]  # 730 h x 0.005


def test_a_nat_gateway_with_57645_connections_is_not_idle():
    assert (
        findings(
            'aws.nat.gateway_idle',
            'test_nat_gateways_metrics_filter',
            ['nat_gateways', 'metrics'],
            as_of=datetime(2020, 9, 21, 6, tzinfo=UTC),
        )
        == []
    )


def test_instances_stopped_since_2016_cost_nothing_when_they_hold_no_volume():
    tables = ['ec2_instances', 'ebs_volumes', 'elastic_ips']
    found = findings(
        'aws.ec2.instance_stopped',
        'test_ec2_normalize_tag',
        tables,
        empty=['ec2.DescribeVolumes', 'ec2.DescribeAddresses'],
    )
    assert found == []


def test_what_was_not_answered_makes_the_check_unknown_not_silent():
    found = findings(
        'aws.ec2.instance_stopped', 'test_ec2_normalize_tag', ['ec2_instances', 'ebs_volumes', 'elastic_ips']
    )
    assert [f[1] for f in found] == ['unknown']


def test_stopped_instances_have_no_datapoints_and_none_is_idle():
    found = findings('aws.ec2.instance_idle', 'test_ec2_metric_extended_stats', ['ec2_instances', 'metrics'])
    assert [
        s for _, s, _ in found if s == 'fail'
    ] == []  # the running one has a CPU metric but no network metric: unknown


@pytest.mark.parametrize(('region', 'hours'), [('us-east-1', '16.43'), ('us-west-2', '16.43')])
def test_application_load_balancers_without_targets(region, hours):
    tables = ['load_balancers', 'target_groups', 'targets']
    found = findings(
        'aws.elb.no_targets', 'test_appelb_instance_count_zero', tables, region, empty=['elb.DescribeLoadBalancers']
    )
    assert [f[1] for f in found] == ['fail', 'fail']
    assert {f[2] for f in found} == {dollars(hours)} or {f[2] for f in found} == {
        dollars('16.42')
    }  # 730 h x 0.0225, internal: no IPv4


def test_databases_that_are_stopped_or_failed_are_not_idle():
    found = findings('aws.rds.instance_idle', 'test_rds_start', ['rds_instances', 'metrics'])
    assert [f for f in found if f[1] == 'fail'] == []


def test_log_groups_without_retention():
    recorded = ['log_groups', 'metrics'], 'us-west-2', AS_OF, ['cloudwatch.GetMetricData']
    assert (
        findings('aws.logs.retention_missing', 'test_log_group_retention', *recorded) == []
    )  # under 1 GiB: not worth a finding
    found = findings('aws.logs.retention_missing', 'test_log_group_retention', *recorded, params={'min_gib': 0})
    assert [f[1] for f in found] == ['fail', 'fail']  # the third of the groups that keep for ever holds nothing

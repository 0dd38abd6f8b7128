"""What AWS really answered (recordings of Cloud Custodian), through the real collectors: the rows of the inventory.

The figures are those of data/recordings/expected.csv and of the recordings themselves."""
from datetime import UTC, datetime

import pytest
from replay import Replay, collect_recording

from finops_nb.aws import classify_error, client


def rows(db, sql):
    "Rows as tuples; DuckDB's own fetchall needs pytz for times"
    return list(zip(*(c.to_pylist() for c in db.sql(sql).to_arrow_table().columns), strict=True))


def statuses(db, table):
    return rows(db, f"select service, operation, status from coverage where table_name = '{table}' order by all")


def at(*args): return datetime(*args, tzinfo=UTC)


def test_gp2_volumes_of_the_cost_optimization_hub_case():
    db = collect_recording('cost_opt_hub_ebs', ['ebs_volumes'])
    assert rows(db, """select resource_id, volume_type, size_gib, iops, throughput_mibps, attached_instance_id
        from ebs_volumes""") == [
        ('vol-00bb30bb7db3b690f', 'gp3', 128, 3000, 125, 'i-01d66cdcd8e4d3966'),
        ('vol-01269f6008ec7a865', 'gp2', 12, 100, None, 'i-0cf932f619d74db7b'),
        ('vol-01d020e75fb456422', 'gp2', 32, 100, None, 'i-01d66cdcd8e4d3966')]
    assert rows(db, "select resource_arn, tags['App'] from ebs_volumes where size_gib = 12") == [
        ('arn:aws:ec2:us-east-1:644160558196:volume/vol-01269f6008ec7a865', 'AssetDB')]


def test_unattached_volumes():
    db = collect_recording('test_ebs_volume_query', ['ebs_volumes'])
    assert rows(db, 'select volume_type, size_gib, state, attached_instance_id, snapshot_id from ebs_volumes') == [
        ('gp3', 100, 'available', None, None), ('gp3', 200, 'available', None, None)]   # an empty SnapshotId is null


def test_provisioned_iops_volume():
    db = collect_recording('test_ebs_metrics_percent_filter', ['ebs_volumes'])
    assert rows(db, 'select volume_type, size_gib, iops, state from ebs_volumes') == [('io1', 100, 5000, 'available')]


def test_volumes_of_every_old_type_and_their_instances():
    db = collect_recording('test_ebs_modifyable_filter', ['ebs_volumes', 'ec2_instances'])
    assert rows(db, """select v.volume_type, count(*), sum(size_gib), count(i.resource_id) from ebs_volumes v
        left join ec2_instances i on i.resource_id = v.attached_instance_id group by 1 order by 1""") == [
        ('gp2', 3, 48, 3), ('io1', 2, 80, 1), ('standard', 1, 128, 1)]
    assert rows(db, "select size_gib, iops from ebs_volumes where state = 'available'") == [(64, 1000)]


def test_snapshot_behind_an_image():
    db = collect_recording('test_ebs_snapshot_unused', ['ebs_snapshots', 'ec2_images'])
    assert rows(db, """select s.resource_id, volume_id, s.started_at, i.resource_id from ebs_snapshots s
        left join ec2_images i on list_contains(i.snapshot_ids, s.resource_id) order by 1""") == [
        ('snap-0b80955e4f7052f72', 'vol-ffffffff', at(2019, 3, 8, 16, 12, 36, 913000), 'ami-008c67c239389d171'),
        ('snap-0b818bbec5eebac4c', 'vol-090f204348522c306', at(2019, 3, 8, 16, 9, 25, 523000), None),
        ('snap-0bf9e1af959fbdddf', 'vol-0bf78c2aa3a923550', at(2019, 3, 6, 0, 44, 22, 972000), None)]
    assert rows(db, 'select created_at from ec2_images') == [(at(2019, 3, 8, 16, 7, 13),)]   # ISO text in the answer


def test_snapshots_of_volumes_that_exist():
    db = collect_recording('test_ebs_volume_snapshots_filter', ['ebs_snapshots', 'ebs_volumes'])
    assert rows(db, """select s.size_gib, v.size_gib, storage_tier from ebs_snapshots s
        join ebs_volumes v on v.resource_id = s.volume_id order by started_at""") == [
        (20, 40, 'standard'), (40, 40, 'standard'), (20, 20, 'standard')]   # the volume grew in between


def test_own_snapshots_only_are_asked_for():
    replay = Replay('test_ebs_snapshot_unused', '644160558196', 'us-east-1')
    asked = {}
    session = replay.connect(None, None)
    def remember(model, params, **kw): asked[model.name] = dict(params)
    session.events.register('before-parameter-build', remember)
    replay.connect = lambda account, run_id: session
    collect_recording('', ['ebs_snapshots', 'ec2_images'], replay=replay)
    assert (asked['DescribeSnapshots']['OwnerIds'], asked['DescribeImages']['Owners']) == (['self'], ['self'])


def test_idle_and_used_addresses():
    db = collect_recording('test_eip_used_by', ['elastic_ips'], region='us-west-2')
    assert rows(db, 'select public_ip, association_id is null, instance_id, network_interface_id from elastic_ips') == [
        ('100.20.250.96', False, None, 'eni-0d4abd825d8d1a18a'), ('35.85.26.59', True, None, None),
        ('52.27.14.199', False, 'i-02bdb80e43cda8576', 'eni-0c460249c6f383b28')]


def test_busy_nat_gateway():
    db = collect_recording('test_nat_gateways_metrics_filter', ['nat_gateways', 'metrics'], as_of=at(2020, 9, 21, 6))
    assert rows(db, 'select resource_id, state, created_at, public_ip_count from nat_gateways') == [
        ('nat-12345678901112134', 'available', at(2018, 2, 22, 12, 12, 12), 1)]
    assert rows(db, 'select metric, datapoints, expected_datapoints, max_value from metrics where datapoints > 0') == [
        ('ActiveConnectionCount', 1, 14, 57645)]


def test_idle_instance():
    db = collect_recording('test_ec2_metric', ['ec2_instances', 'metrics'], region='us-west-2',
                           as_of=at(2016, 6, 25, 6))
    assert rows(db, """select instance_type, state, operating_system, state_changed_at, is_marketplace
        from ec2_instances""") == [
        ('m3.medium', 'running', 'Linux', None, False)]
    assert rows(db, """select window_start, window_end, datapoints, avg_value from metrics
        where statistic = 'Average'""") == [
        (at(2016, 6, 11), at(2016, 6, 25), 1, pytest.approx(0.02857142857142857))]


def test_only_running_instances_are_asked_for_metrics_and_none_is_not_zero():
    db = collect_recording('test_ec2_metric_extended_stats', ['ec2_instances', 'metrics'], as_of=at(2025, 5, 3, 6))
    assert rows(db, 'select state, operating_system, architecture, state_changed_at from ec2_instances') == [
        ('stopped', 'Linux', 'arm64', at(2025, 3, 6, 14, 33, 58)),
        ('stopped', 'Linux', 'x86_64', at(2024, 4, 4, 4, 22)),
        ('running', 'Linux', 'x86_64', None)]
    assert rows(db, 'select distinct resource_id, datapoints, max_value, is_zero_filled from metrics') == [
        ('i-0fdc8cff63616a335', 0, None, False)]


def test_stopped_since_from_the_sentence_and_a_row_listed_twice_counts_once():
    db = collect_recording('test_ec2_normalize_tag', ['ec2_instances'], region='us-west-2')
    assert rows(db, 'select resource_id, state_changed_at from ec2_instances') == [
        ('i-016b9b0c54f79336f', at(2016, 11, 14, 16, 23, 56)), ('i-0a3f37fe9ecdd7a1f', at(2016, 11, 14, 16, 23, 56)),
        ('i-0ac7c62166b75ae95', at(2016, 11, 14, 18, 44, 19)), ('i-0fd5f7a77ce2ed579', at(2016, 11, 14, 16, 23, 56))]
    assert rows(db, "select items from coverage where table_name = 'ec2_instances'") == [(5,)]


def test_classic_load_balancers_with_traffic_without_and_with_no_metric():
    db = collect_recording('test_missing_metrics', ['load_balancers', 'metrics'], as_of=at(2019, 6, 26, 6),
                           empty=['elbv2.DescribeLoadBalancers'])
    assert rows(db, 'select resource_id, kind, instance_count, tags from load_balancers') == [
        (f'test-elb-{name}-metrics', 'classic', 0, None) for name in ('missing', 'nonzero', 'zero')]
    assert rows(db, 'select resource_id, datapoints, sum_value, is_zero_filled from metrics') == [
        ('test-elb-missing-metrics', 0, None, True), ('test-elb-nonzero-metrics', 1, 13417, True),
        ('test-elb-zero-metrics', 1, 0, True)]
    assert statuses(db, 'load_balancers') == [
        ('elb', 'DescribeLoadBalancers', 'ok'), ('elbv2', 'DescribeLoadBalancers', 'ok')]
    assert statuses(db, 'load_balancers.tags') == [('elb', 'DescribeTags', 'failed'), ('elbv2', 'DescribeTags', 'ok')]


def test_application_load_balancers_with_empty_target_groups():
    db = collect_recording('test_appelb_instance_count_zero', ['load_balancers', 'target_groups', 'targets'],
                           region='us-west-2', empty=['elb.DescribeLoadBalancers'])
    assert rows(db, 'select resource_id, kind, zone_count, created_at, tags from load_balancers') == [
        ('app/alb-1/1e0ac88a139a5177', 'application', 3, at(2016, 9, 29, 14, 43, 51, 200000),
         [('KEY2', 'VALUE2'), ('KEY1', 'VALUE1')]),
        ('app/alb-2/4dec284f036410cb', 'application', 2, at(2016, 9, 29, 14, 45, 37, 750000), [])]
    assert rows(db, 'select resource_id, len(load_balancer_arns) from target_groups') == [
        ('targetgroup/target-group-1/f9e509bf6804a101', 2), ('targetgroup/target-group-2/9c84115056e192c4', 2)]
    assert rows(db, 'from targets') == []
    assert statuses(db, 'targets') == [('elbv2', 'DescribeTargetHealth', 'ok')]


def test_what_is_not_recorded_is_a_gap_not_an_empty_table():
    db = collect_recording('test_appelb_instance_count_zero', ['load_balancers'], region='us-west-2')
    assert statuses(db, 'load_balancers') == [
        ('elb', 'DescribeLoadBalancers', 'failed'), ('elbv2', 'DescribeLoadBalancers', 'ok')]
    db = collect_recording('cost_opt_hub_ebs', ['nat_gateways', 'metrics'])
    assert statuses(db, 'nat_gateways') == [('ec2', 'DescribeNatGateways', 'failed')]


def test_databases():
    db = collect_recording('test_rds_retention', ['rds_instances'], region='us-west-2')
    assert rows(db, """select resource_id, instance_class, engine, storage_type, storage_gib, iops, is_multi_az, status
        from rds_instances""") == [
        ('oneness', 'db.m3.medium', 'postgres', 'gp2', 5, None, False, 'available'),
        ('qapipfitread', 'db.m3.medium', 'postgres', 'gp2', 50, None, False, 'available'),
        ('qpsoaread', 'db.m3.2xlarge', 'mysql', 'io1', 300, 3000, False, 'available'),
        ('sbbdev', 'db.m3.medium', 'mysql', 'io1', 100, 1000, True, 'failed'),
        ('sbbdevslave', 'db.m3.medium', 'mysql', 'io1', 100, 1000, False, 'available')]
    assert rows(db, "select replica_source from rds_instances where resource_id = 'sbbdevslave'") == [('sbbdev',)]


def test_stopped_databases():
    db = collect_recording('test_rds_start', ['rds_instances'], region='us-west-2')
    assert rows(db, 'select resource_id, status, created_at from rds_instances') == [
        ('rds-test-instance-1', 'stopping', at(2017, 4, 5, 20, 28, 25, 992000)),
        ('rds-test-instance-2', 'stopped', at(2017, 4, 5, 20, 31, 22, 598000))]


def test_log_groups_kept_for_ever():
    db = collect_recording('test_log_group_retention', ['log_groups'], region='us-west-2')
    assert rows(db, 'select resource_id, retention_days, stored_bytes, created_at from log_groups') == [
        ('/aws/lambda/ec2-instance-type', None, 32987, at(2016, 8, 8, 10, 36, 15, 943000)),
        ('/aws/lambda/process_resources', None, 4904, at(2016, 6, 26, 12, 25, 45, 968000)),
        ('c7n-test-a', None, 0, at(2016, 8, 13, 8, 28, 54, 753000))]
    assert rows(db, 'select resource_arn from log_groups limit 1') == [
        ('arn:aws:logs:us-west-2:644160558196:log-group:/aws/lambda/ec2-instance-type',)]


def test_a_throttled_second_page_is_asked_again():
    replay = Replay('test_query_pagination_retry', '644160558196', 'us-west-2')
    db = collect_recording('', ['log_groups'], region='us-west-2', replay=replay)
    assert replay.times['logs', 'DescribeLogGroups'] == 2   # answers 0, 1 (throttled) and 2
    assert rows(db, "select status, items from coverage where table_name = 'log_groups'") == [('ok', 11)]
    assert rows(db, 'select count(*), max(stored_bytes) from log_groups') == [(9, 142043)]   # the pages overlap by two


def test_buckets_of_an_answer_without_regions():
    db = collect_recording('test_s3_lifecycle', ['s3_buckets'], empty=['s3.GetBucketLocation'])
    assert rows(db, 'select resource_id, region, created_at, resource_arn from s3_buckets') == [
        ('c7n-lifecycle-test-again3', 'us-east-1', at(2022, 6, 15, 2, 55, 59),
         'arn:aws:s3:::c7n-lifecycle-test-again3')]
    db = collect_recording('test_s3_lifecycle', ['s3_buckets'])
    assert rows(db, 'select region from s3_buckets') == [(None,)]   # nobody told: unknown, not a default
    assert statuses(db, 's3_buckets') == [('s3', 'ListBuckets', 'ok')]
    assert statuses(db, 's3_buckets.region') == [('s3', 'GetBucketLocation', 'failed')]


def test_a_recorded_refusal_is_told_from_other_errors():
    session = Replay('test_account_org_info_denied', '644160558196', 'us-east-1').connect(None, None)
    organizations = client(session, 'organizations', 'us-east-1')
    with pytest.raises(organizations.exceptions.ClientError) as refused: organizations.describe_organization()
    assert classify_error(refused.value) == ('denied', 'AccessDeniedException')

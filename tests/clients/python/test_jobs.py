"""The unmodified Python service SDK: scheduled jobs, and their results at each device."""

import json
from datetime import datetime, timedelta, timezone

import pytest
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

from hub import wait_until


@pytest.fixture(scope="module")
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


@pytest.fixture(scope="module")
def jobs(hub):
    return IoTHubJobManager.from_connection_string(hub.owner)


@pytest.fixture
def fleet(hub, registry, device_id):
    """Three devices with a tag of their own; gives their ids."""
    names = [f"{device_id}-{number}" for number in range(3)]
    for name in names:
        hub.create_device(name)
        registry.update_twin(name, Twin(tags={"fleet": device_id}), "*")
    return names


def ended(jobs, job_id, seconds=30):
    def look():
        job = jobs.get_scheduled_job(job_id)
        return job if job.status in ("completed", "failed", "cancelled") else None

    return wait_until(look, f"the end of {job_id}", seconds)


def device_jobs(hub, job_id):
    """What came of a job at each device."""
    query = f"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{job_id}'"
    answer = hub.request("POST", "/devices/query", json={"query": query})
    assert answer.headers["x-ms-item-type"] == "DeviceJob"
    return {row["deviceId"]: row for row in answer.json()}


def refused(error, status, name):
    assert error.value.response.status_code == status, error.value.response.text
    assert error.value.response.headers["iothub-errorcode"] == name
    return error.value.response.json()["Message"]


def test_a_twin_update(hub, registry, jobs, fleet, device_id):
    request = JobRequest(
        job_id=f"{device_id}-job",
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", tags={"wave": 2}, properties=TwinProperties(desired={"interval": 5})),
        query_condition=f"tags.fleet = '{device_id}'",
        start_time=None,
        max_execution_time_in_seconds=60,
    )
    made = jobs.create_scheduled_job(request.job_id, request)
    assert (made.job_id, made.type) == (request.job_id, "scheduleUpdateTwin")
    assert made.status in ("queued", "running", "completed")
    job = ended(jobs, request.job_id)
    assert job.status == "completed"
    figures = job.device_job_statistics
    assert (figures.device_count, figures.succeeded_count, figures.failed_count, figures.pending_count) == (3, 3, 0, 0)
    for name in fleet:
        twin = registry.get_twin(name)
        assert twin.tags["wave"] == 2 and twin.properties.desired["interval"] == 5
    rows = device_jobs(hub, request.job_id)
    assert set(rows) == set(fleet)
    row = rows[fleet[0]]
    assert (row["status"], row["jobType"]) == ("completed", "scheduleUpdateTwin")
    assert row["startTimeUtc"] <= row["endTimeUtc"] <= row["lastUpdatedDateTimeUtc"]
    with pytest.raises(HttpOperationError) as again:
        jobs.create_scheduled_job(request.job_id, request)
    refused(again, 409, "JobAlreadyExists")


def test_a_method(hub, jobs, fleet, device_id):
    """One device answers, one refuses, one is not there."""
    clients = []
    for name, status in zip(fleet[:2], (200, 409)):
        client = IoTHubDeviceClient.create_from_connection_string(
            hub.device_connection_string(name), server_verification_cert=hub.ca_pem
        )

        def answer(request, client=client, status=status):
            client.send_method_response(MethodResponse.create_from_method_request(request, status, {"got": request.payload}))

        client.on_method_request_received = answer
        client.connect()
        clients.append(client)
    method = CloudToDeviceMethod(
        method_name="reboot", payload={"delay": 3}, response_timeout_in_seconds=15, connect_timeout_in_seconds=0
    )
    request = JobRequest(
        job_id=f"{device_id}-job",
        type="scheduleDeviceMethod",
        cloud_to_device_method=method,
        query_condition=f"tags.fleet = '{device_id}'",
        max_execution_time_in_seconds=60,
    )
    wait_until(lambda: all(hub.connected(name) for name in fleet[:2]), "both devices to be connected")
    jobs.create_scheduled_job(request.job_id, request)
    job = ended(jobs, request.job_id)
    assert job.status == "completed"
    figures = job.device_job_statistics
    assert (figures.device_count, figures.succeeded_count, figures.failed_count) == (3, 2, 1)
    rows = device_jobs(hub, request.job_id)
    assert rows[fleet[0]]["outcome"]["deviceMethodResponse"] == {"status": 200, "payload": {"got": {"delay": 3}}}
    assert rows[fleet[1]]["outcome"]["deviceMethodResponse"]["status"] == 409
    assert rows[fleet[2]]["status"] == "failed"
    assert rows[fleet[2]]["error"]["code"] == "DeviceNotOnline"
    for client in clients:
        client.shutdown()


def test_modules(hub, registry, jobs, fleet, device_id):
    registry.create_module_with_sas(fleet[0], "m", "", None, None)
    request = JobRequest(
        job_id=f"{device_id}-job",
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", properties=TwinProperties(desired={"x": 1})),
        query_condition=f"FROM devices.modules WHERE deviceId IN ['{fleet[0]}', '{fleet[1]}'] AND moduleId = 'm'",
        max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(request.job_id, request)
    assert ended(jobs, request.job_id).device_job_statistics.succeeded_count == 1
    assert registry.get_module_twin(fleet[0], "m").properties.desired["x"] == 1
    assert device_jobs(hub, request.job_id)[fleet[0]]["moduleId"] == "m"


def test_a_job_waits_for_its_time_and_can_be_cancelled(hub, registry, jobs, fleet, device_id):
    def schedule(name, seconds):
        request = JobRequest(
            job_id=f"{device_id}-{name}",
            type="scheduleUpdateTwin",
            update_twin=Twin(etag="*", tags={name: True}),
            query_condition=f"tags.fleet = '{device_id}'",
            start_time=datetime.now(timezone.utc) + timedelta(seconds=seconds),
            max_execution_time_in_seconds=60,
        )
        return jobs.create_scheduled_job(request.job_id, request)

    soon, never = schedule("soon", 2), schedule("never", 3600)
    assert (soon.status, never.status) == ("scheduled", "scheduled")
    cancelled = jobs.cancel_scheduled_job(never.job_id)
    assert cancelled.status == "cancelled"
    assert jobs.cancel_scheduled_job(never.job_id).status == "cancelled", "a second time changes nothing"
    job = ended(jobs, soon.job_id)
    assert job.status == "completed" and job.start_time >= soon.start_time
    tags = registry.get_twin(fleet[0]).tags
    assert "soon" in tags and "never" not in tags
    with pytest.raises(HttpOperationError) as late:
        jobs.cancel_scheduled_job(soon.job_id)
    refused(late, 400, "InvalidOperation")
    listed = hub.request("GET", "/jobs/v2/query", params={"jobStatus": "cancelled", "jobType": "scheduleUpdateTwin"})
    assert listed.headers["x-ms-item-type"] == "JobResponse"
    assert never.job_id in [one["jobId"] for one in listed.json()]


def test_lists_come_in_pages(hub, jobs, device_id):
    for number in range(3):
        request = JobRequest(
            job_id=f"{device_id}-{number}",
            type="scheduleUpdateTwin",
            update_twin=Twin(etag="*", tags={"a": 1}),
            query_condition="deviceId = 'nobody'",
            max_execution_time_in_seconds=60,
        )
        jobs.create_scheduled_job(request.job_id, request)
    ids, token = [], None
    while True:
        headers = {"x-ms-max-item-count": "1", **({"x-ms-continuation": token} if token else {})}
        answer = hub.request("GET", "/jobs/v2/query", headers=headers)
        assert len(answer.json()) == 1
        ids += [one["jobId"] for one in answer.json()]
        token = answer.headers.get("x-ms-continuation")
        if not token:
            break
    assert len(ids) == len(set(ids))
    assert ids[:3] == [f"{device_id}-{number}" for number in (2, 1, 0)], "newest first"


def test_bad_requests_are_refused(hub, jobs, device_id):
    good = {"type": "scheduleUpdateTwin", "updateTwin": {"tags": {"a": 1}}, "queryCondition": "*", "unknown": [1]}
    method = {"type": "scheduleDeviceMethod", "cloudToDeviceMethod": {"methodName": "m"}}
    for change, words in [
        ({"queryCondition": "tags.a = "}, "line 1, column"),
        ({"queryCondition": ""}, "missing"),
        ({"type": "scheduleNothing"}, "type must be"),
        ({"updateTwin": None}, "updateTwin is missing"),
        ({"updateTwin": {"tags": {"a.b": 1}}}, "tags"),
        ({"startTime": "tomorrow"}, "ISO 8601"),
        ({"maxExecutionTimeInSeconds": 0}, "maxExecutionTimeInSeconds"),
        ({"maxExecutionTimeInSeconds": 10**9}, "maxExecutionTimeInSeconds"),
        ({"jobId": "another"}, "jobId"),
        ({**method, "cloudToDeviceMethod": {"methodName": "m", "responseTimeoutInSeconds": 1}}, "responseTimeoutInSeconds"),
        ({**method, "cloudToDeviceMethod": None}, "cloudToDeviceMethod is missing"),
    ]:
        answer = hub.request("PUT", f"/jobs/v2/{device_id}-bad", json={**good, **change})
        assert (answer.status_code, answer.headers["iothub-errorcode"]) == (400, "ArgumentInvalid"), (change, answer.text)
        assert words in answer.json()["Message"], answer.text
    answer = hub.request("PUT", f"/jobs/v2/{'x' * 129}", json=good)
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == (400, "ArgumentInvalid")
    for call in (jobs.get_scheduled_job, jobs.cancel_scheduled_job):
        with pytest.raises(HttpOperationError) as unknown:
            call(f"{device_id}-unknown")
        refused(unknown, 404, "JobNotFound")
    for params in ({"jobType": "nonsense"}, {"jobStatus": "nonsense"}):
        assert hub.request("GET", "/jobs/v2/query", params=params).status_code == 400


def ask(running, method, path, body=None, headers=()):
    """A request to a hub on free ports; gives the JSON answer and the headers."""
    status, fields, text = running.call(method, path, body, headers)
    assert status == 200, text
    return json.loads(text), {name.lower(): value for name, value in fields}


def test_a_job_survives_kill_9(own_wired, tmp_path):
    """Killed several times in the middle: every device is done, and recorded once."""
    count, data = 3_000, tmp_path / "killed"
    running = own_wired(data_dir=data)
    for start in range(0, count, 100):
        entries = [{"id": f"d{number:05}", "importMode": "create"} for number in range(start, start + 100)]
        assert ask(running, "POST", "/devices", entries)[0]["isSuccessful"]
    job = {"type": "scheduleUpdateTwin", "updateTwin": {"tags": {"done": 1}}, "queryCondition": "*"}
    ask(running, "PUT", "/jobs/v2/big", job)

    def state():
        return ask(running, "GET", "/jobs/v2/big")[0]

    kills = 0
    for share in (0.02, 0.2, 0.5):
        wait_until(
            lambda: state()["deviceJobStatistics"]["succeededCount"] >= share * count or state()["status"] == "completed",
            "progress",
            60,
        )
        if state()["status"] == "completed":
            break
        running.process.kill()
        running.process.wait()
        kills += 1
        running = own_wired(data_dir=data)
    wait_until(lambda: state()["status"] == "completed", "the end of the job", 60)
    assert kills > 0, "the job was over before it could be interrupted"
    figures = state()["deviceJobStatistics"]
    assert (figures["deviceCount"], figures["succeededCount"], figures["failedCount"]) == (count, count, 0)
    done = ask(running, "POST", "/devices/query", {"query": "SELECT COUNT() AS n FROM devices WHERE tags.done = 1"})[0]
    assert done == [{"n": count}]
    seen, token = [], None
    while True:
        headers = {"x-ms-max-item-count": "1000", **({"x-ms-continuation": token} if token else {})}
        query = {"query": "SELECT * FROM devices.jobs WHERE jobId = 'big'"}
        rows, fields = ask(running, "POST", "/devices/query", query, headers)
        seen += [(row["deviceId"], row["status"]) for row in rows]
        token = fields.get("x-ms-continuation")
        if not token:
            break
    assert sorted(seen) == [(f"d{number:05}", "completed") for number in range(count)]

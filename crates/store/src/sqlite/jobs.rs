//! Jobs in SQLite.

use holdfast_model::job::{
    DeviceJob, DeviceJobResult, DeviceJobStatus, Job, JobCounts, JobKind, JobSpec, JobStatus,
};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::job::{History, JobFilter, JobStore, JobTelling, NewJob, Remainder, Targets};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};

use super::configurations::identity;
use super::fault::Fault;
use super::writer::WriteContext;
use super::{SqliteStore, module_column, outbox};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT number, id, document, status, created_at, start_at, started_at, ended_at, failure, cursor, expanded,
                    pending, running, succeeded, failed, canceled
             FROM jobs ",
            $rest
        )
    };
}

/// What a device job is read from, over `device_jobs AS j` and `jobs AS k`.
pub(super) const DEVICE_JOB_COLUMNS: &str =
    "j.job, k.id, k.type, j.device_id, j.module_id, j.status, j.created_at,
    j.started_at, j.ended_at, j.updated_at, j.outcome, j.error";

impl JobStore for SqliteStore {
    fn create_job_telling(
        &self,
        job: NewJob,
        unfinished_max: usize,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'_, StoreResult<Job>> {
        self.write(move |context| {
            let db = &context.db;
            if find(db, &job.id)?.is_some() {
                return Err(StoreError::Exists.into());
            }
            let unfinished: i64 = db
                .prepare_cached(
                    "SELECT count(*) FROM jobs WHERE status IN ('scheduled', 'queued', 'running')",
                )?
                .query_row([], |row| row.get(0))?;
            if unfinished as usize >= unfinished_max {
                return Err(StoreError::Full.into());
            }
            let document = serde_json::to_string(&job.spec).map_err(|error| Fault::content("job", error))?;
            db.prepare_cached(
                "INSERT INTO jobs (id, type, status, created_at, start_at, document) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                job.id,
                job.spec.work.kind().as_str(),
                job.status.as_str(),
                job.created_at.as_micros(),
                job.start_at.as_micros(),
                document
            ])?;
            told(db, &job.id, telling.as_ref())
        })
    }

    fn job<'a>(&'a self, id: &'a str) -> BoxFuture<'a, StoreResult<Option<Job>>> {
        self.read(move |db| find(db, id))
    }

    fn jobs(
        &self,
        filter: JobFilter,
        before: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Job>>> {
        self.read(move |db| {
            let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let kind = filter.kind.map(JobKind::as_str);
            let status = filter.status.map(JobStatus::as_str);
            list(
                db,
                select!(
                    "WHERE number < ?1 AND (?2 IS NULL OR type = ?2) AND (?3 IS NULL OR status = ?3)
                     ORDER BY number DESC LIMIT ?4"
                ),
                &[&before, &kind, &status, &limit],
            )
        })
    }

    fn unfinished_jobs(&self) -> BoxFuture<'_, StoreResult<Vec<Job>>> {
        self.read(|db| {
            list(
                db,
                select!(
                    "WHERE status IN ('scheduled', 'queued', 'running') OR pending > 0 OR running > 0 ORDER BY number"
                ),
                &[],
            )
        })
    }

    fn set_job_status_telling<'a>(
        &'a self,
        id: &'a str,
        status: JobStatus,
        failure: Option<String>,
        at: Timestamp,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'a, StoreResult<Job>> {
        let id = id.to_owned();
        self.write(move |context| {
            let job = changeable(&context.db, &id)?;
            let now = Some(at.as_micros());
            let started_at = job.started_at.map(Timestamp::as_micros);
            let started_at = started_at.or(now.filter(|_| status == JobStatus::Running));
            let ended_at = now.filter(|_| status.is_final());
            context
                .db
                .prepare_cached(
                    "UPDATE jobs SET status = ?2, failure = ?3, started_at = ?4, ended_at = ?5 WHERE number = ?1",
                )?
                .execute(params![
                    job.number as i64,
                    status.as_str(),
                    failure,
                    started_at,
                    ended_at
                ])?;
            told(&context.db, &id, telling.as_ref())
        })
    }

    fn add_targets<'a>(&'a self, id: &'a str, targets: Targets) -> BoxFuture<'a, StoreResult<Job>> {
        let id = id.to_owned();
        self.write(move |context| {
            let db = &context.db;
            let mut job = changeable(db, &id)?;
            let mut insert = db.prepare_cached(
                "INSERT INTO device_jobs (job, device_id, module_id, status, created_at, updated_at)
                 VALUES (?1, ?2, ?3, 'pending', ?4, ?4) ON CONFLICT DO NOTHING",
            )?;
            for identity in &targets.found {
                job.counts.pending += insert.execute(params![
                    job.number as i64,
                    identity.device_id(),
                    module_column(identity),
                    targets.at.as_micros()
                ])? as u64;
            }
            db.prepare_cached("UPDATE jobs SET cursor = ?2, expanded = ?3 WHERE number = ?1")?
                .execute(params![job.number as i64, targets.cursor, targets.complete])?;
            save_counts(db, job.number, &job.counts)?;
            existing(db, &id)
        })
    }

    fn job_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        // The status stands in the text, so that SQLite sees that the index of unfinished targets serves.
        macro_rules! targets {
            ($status:literal) => {
                concat!(
                    "SELECT device_id, module_id FROM device_jobs WHERE job = ?1 AND status = '",
                    $status,
                    "' AND (device_id, module_id) > (?2, ?3) ORDER BY device_id, module_id LIMIT ?4"
                )
            };
        }
        let sql = match status {
            DeviceJobStatus::Pending => targets!("pending"),
            DeviceJobStatus::Running => targets!("running"),
            DeviceJobStatus::Completed => targets!("completed"),
            DeviceJobStatus::Failed => targets!("failed"),
            DeviceJobStatus::Canceled => targets!("canceled"),
        };
        self.read(move |db| {
            let number = number(db, id)?;
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params![
                number,
                after.map_or("", Identity::device_id),
                after.map_or("", |after| module_column(after)),
                i64::try_from(limit).unwrap_or(i64::MAX)
            ])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(identity(row, 0)?);
            }
            Ok(found)
        })
    }

    fn begin_targets<'a>(
        &'a self,
        id: &'a str,
        targets: Vec<Identity>,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        let id = id.to_owned();
        self.write(move |context| {
            let db = &context.db;
            let mut job = existing(db, &id)?;
            let mut statement = db.prepare_cached(
                "UPDATE device_jobs SET status = 'running', started_at = ?4, updated_at = ?4
                 WHERE job = ?1 AND device_id = ?2 AND module_id = ?3 AND status = 'pending'",
            )?;
            let mut begun = Vec::with_capacity(targets.len());
            for identity in targets {
                let changed = statement.execute(params![
                    job.number as i64,
                    identity.device_id(),
                    module_column(&identity),
                    at.as_micros()
                ])?;
                if changed > 0 {
                    begun.push(identity);
                }
            }
            let (from, to) = (DeviceJobStatus::Pending, DeviceJobStatus::Running);
            job.counts.shift(from, to, begun.len() as u64);
            save_counts(db, job.number, &job.counts)?;
            Ok(begun)
        })
    }

    fn record_targets<'a>(
        &'a self,
        id: &'a str,
        results: Vec<DeviceJobResult>,
    ) -> BoxFuture<'a, StoreResult<JobCounts>> {
        let id = id.to_owned();
        self.write(move |context| {
            let mut job = existing(&context.db, &id)?;
            for result in &results {
                record(context, &mut job, result)?;
            }
            save_counts(&context.db, job.number, &job.counts)?;
            Ok(job.counts)
        })
    }

    fn finish_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        remainder: Remainder,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<usize>> {
        macro_rules! finish {
            ($status:literal) => {
                concat!(
                    "UPDATE device_jobs SET status = ?2, ended_at = ?3, updated_at = ?3, error = ?4
                     WHERE job = ?1 AND (device_id, module_id) IN
                        (SELECT device_id, module_id FROM device_jobs WHERE job = ?1 AND status = '",
                    $status,
                    "' LIMIT ?5)"
                )
            };
        }
        let sql = match status {
            DeviceJobStatus::Pending => finish!("pending"),
            _ => finish!("running"),
        };
        let id = id.to_owned();
        self.write(move |context| {
            let mut job = existing(&context.db, &id)?;
            let changed = context.db.prepare_cached(sql)?.execute(params![
                job.number as i64,
                remainder.status.as_str(),
                remainder.at.as_micros(),
                encode(remainder.error.as_ref())?,
                i64::try_from(limit).unwrap_or(i64::MAX)
            ])?;
            job.counts.shift(status, remainder.status, changed as u64);
            save_counts(&context.db, job.number, &job.counts)?;
            Ok(changed)
        })
    }

    fn history(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<History>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT id FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND ended_at < ?1
                 ORDER BY ended_at, number LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let expired = statement.query_map(params![before.as_micros(), limit], |row| row.get(0))?;
            let expired = expired.collect::<rusqlite::Result<Vec<String>>>()?;
            let (ended, device_jobs): (i64, i64) = db
                .prepare_cached(
                    "SELECT ifnull(sum(status IN ('completed', 'failed', 'cancelled')), 0),
                            ifnull(sum(pending + running + succeeded + failed + canceled), 0) FROM jobs",
                )?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(History {
                expired,
                ended: ended as u64,
                device_jobs: device_jobs as u64,
            })
        })
    }

    fn delete_history<'a>(&'a self, id: &'a str, limit: usize) -> BoxFuture<'a, StoreResult<usize>> {
        let id = id.to_owned();
        self.write_single(move |context| {
            let job = existing(&context.db, &id)?;
            if !job.status.is_final() {
                return Ok(0);
            }
            let deleted = context
                .db
                .prepare_cached(
                    "DELETE FROM device_jobs WHERE job = ?1 AND (device_id, module_id) IN
                        (SELECT device_id, module_id FROM device_jobs WHERE job = ?1 LIMIT ?2)",
                )?
                .execute(params![
                    job.number as i64,
                    i64::try_from(limit).unwrap_or(i64::MAX)
                ])?;
            if deleted == 0 {
                context
                    .db
                    .prepare_cached("DELETE FROM jobs WHERE number = ?1")?
                    .execute([job.number as i64])?;
            }
            Ok(deleted)
        })
    }

    fn device_jobs<'a>(
        &'a self,
        job: Option<&'a str>,
        after: Option<(u64, Identity)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeviceJob>>> {
        self.read(move |db| {
            let only = match job {
                None => None,
                Some(id) => match find(db, id)? {
                    None => return Ok(Vec::new()),
                    Some(job) => Some(job.number as i64),
                },
            };
            let (number, device, module) = match &after {
                None => (0, "", ""),
                Some((number, identity)) => (*number as i64, identity.device_id(), module_column(identity)),
            };
            let least = only.unwrap_or(number).max(number);
            let mut statement = db.prepare_cached(
                "SELECT job, jobs.id, jobs.type, device_jobs.device_id, module_id, device_jobs.status,
                        device_jobs.created_at, device_jobs.started_at, device_jobs.ended_at, updated_at, outcome, error
                 FROM device_jobs JOIN jobs ON jobs.number = device_jobs.job
                 WHERE job >= ?1 AND job <= ?2 AND (job, device_jobs.device_id, module_id) > (?3, ?4, ?5)
                 ORDER BY job, device_jobs.device_id, module_id LIMIT ?6",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let most = only.unwrap_or(i64::MAX);
            let mut rows = statement.query(params![least, most, number, device, module, limit])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(decode_device_job(row)?);
            }
            Ok(found)
        })
    }
}

/// Records one result, if its target is not done.
fn record(context: &WriteContext, job: &mut Job, result: &DeviceJobResult) -> Result<(), Fault> {
    let mut statement = context.db.prepare_cached(
        "SELECT status FROM device_jobs WHERE job = ?1 AND device_id = ?2 AND module_id = ?3
         AND status IN ('pending', 'running')",
    )?;
    let module = module_column(&result.identity);
    let before: Option<String> = statement
        .query_row(
            params![job.number as i64, result.identity.device_id(), module],
            |row| row.get(0),
        )
        .optional()?;
    let Some(before) = before else { return Ok(()) };
    context
        .db
        .prepare_cached(
            "UPDATE device_jobs SET status = ?4, started_at = ?5, ended_at = ?6, updated_at = ?6, outcome = ?7, error = ?8
             WHERE job = ?1 AND device_id = ?2 AND module_id = ?3",
        )?
        .execute(params![
            job.number as i64,
            result.identity.device_id(),
            module,
            result.status.as_str(),
            result.started_at.as_micros(),
            result.ended_at.as_micros(),
            encode(result.outcome.as_ref())?,
            encode(result.error.as_ref())?
        ])?;
    job.counts.shift(device_status(&before)?, result.status, 1);
    Ok(())
}

fn save_counts(db: &Connection, number: u64, counts: &JobCounts) -> Result<(), Fault> {
    db.prepare_cached(
        "UPDATE jobs SET pending = ?2, running = ?3, succeeded = ?4, failed = ?5, canceled = ?6 WHERE number = ?1",
    )?
    .execute(params![
        number as i64,
        counts.pending as i64,
        counts.running as i64,
        counts.succeeded as i64,
        counts.failed as i64,
        counts.canceled as i64
    ])?;
    Ok(())
}

fn find(db: &Connection, id: &str) -> Result<Option<Job>, Fault> {
    Ok(list(db, select!("WHERE id = ?1"), &[&id])?.pop())
}

fn existing(db: &Connection, id: &str) -> Result<Job, Fault> {
    find(db, id)?.ok_or(Fault::Store(StoreError::Missing))
}

/// A job as it is now; what is to be told of it goes into the outbox.
fn told(db: &Connection, id: &str, telling: Option<&JobTelling>) -> Result<Job, Fault> {
    let job = existing(db, id)?;
    if let Some(telling) = telling {
        outbox::insert(db, &telling(&job))?;
    }
    Ok(job)
}

fn changeable(db: &Connection, id: &str) -> Result<Job, Fault> {
    let job = existing(db, id)?;
    if job.status.is_final() {
        return Err(StoreError::Conflict.into());
    }
    Ok(job)
}

fn number(db: &Connection, id: &str) -> Result<i64, Fault> {
    let found = db
        .prepare_cached("SELECT number FROM jobs WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    found.ok_or(Fault::Store(StoreError::Missing))
}

fn list(db: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> Result<Vec<Job>, Fault> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next()? {
        jobs.push(decode(row)?);
    }
    Ok(jobs)
}

fn decode(row: &Row<'_>) -> Result<Job, Fault> {
    let unreadable = |problem: &dyn std::fmt::Display| Fault::content("job", problem);
    let count = |column| -> Result<u64, Fault> { Ok(row.get::<_, i64>(column)? as u64) };
    let document: String = row.get(2)?;
    let spec: JobSpec = serde_json::from_str(&document).map_err(|error| unreadable(&error))?;
    let status: String = row.get(3)?;
    let known = JobStatus::ALL.into_iter().find(|known| known.as_str() == status);
    Ok(Job {
        number: count(0)?,
        id: row.get(1)?,
        spec,
        status: known.ok_or_else(|| unreadable(&format!("unknown status {status}")))?,
        created_at: Timestamp::from_micros(row.get(4)?),
        start_at: Timestamp::from_micros(row.get(5)?),
        started_at: row.get::<_, Option<i64>>(6)?.map(Timestamp::from_micros),
        ended_at: row.get::<_, Option<i64>>(7)?.map(Timestamp::from_micros),
        failure: row.get(8)?,
        cursor: row.get(9)?,
        expanded: row.get(10)?,
        counts: JobCounts {
            pending: count(11)?,
            running: count(12)?,
            succeeded: count(13)?,
            failed: count(14)?,
            canceled: count(15)?,
        },
    })
}

/// Reads a row of [`DEVICE_JOB_COLUMNS`].
pub(super) fn decode_device_job(row: &Row<'_>) -> Result<DeviceJob, Fault> {
    let kind: String = row.get(2)?;
    let known = JobKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let time = |column| -> Result<Option<Timestamp>, Fault> {
        Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
    };
    Ok(DeviceJob {
        number: row.get::<_, i64>(0)? as u64,
        job_id: row.get(1)?,
        kind: known.ok_or_else(|| Fault::content("job", format!("unknown type {kind}")))?,
        identity: identity(row, 3)?,
        status: device_status(&row.get::<_, String>(5)?)?,
        created_at: Timestamp::from_micros(row.get(6)?),
        started_at: time(7)?,
        ended_at: time(8)?,
        updated_at: Timestamp::from_micros(row.get(9)?),
        outcome: decode_json(row, 10)?,
        error: decode_json(row, 11)?,
    })
}

fn device_status(text: &str) -> Result<DeviceJobStatus, Fault> {
    let known = DeviceJobStatus::ALL
        .into_iter()
        .find(|known| known.as_str() == text);
    known.ok_or_else(|| Fault::content("job", format!("unknown status {text}")))
}

fn encode<T: serde::Serialize>(value: Option<&T>) -> Result<Option<String>, Fault> {
    value
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| Fault::content("job", error))
}

fn decode_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<Option<T>, Fault> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| Fault::content("job", error))
}

//! `devices.jobs`: the rows of jobs at their targets.

use holdfast_model::Identity;
use holdfast_ports::query::{Item, Page, job_document};
use holdfast_query::twin::sql::{Param, Params, condition};
use holdfast_query::twin::{JobRow, Position, matches};

use super::super::fault::Fault;
use super::super::{jobs, module_column};
use super::access::bind;
use super::{Run, other_query};

impl Run<'_> {
    /// Rows by job, device id and module id.
    pub(super) fn jobs(&self) -> Result<Page, Fault> {
        let (number, device, module) = self.after_job()?;
        let mut params = Params::default();
        let filter = condition(&self.dialect, &self.plan.predicate, &mut params);
        let after = [Param::Integer(number), Param::Text(device), Param::Text(module)];
        let [number, device, module] = after.map(|param| params.push(param));
        // The condition on the job alone lets a page begin by the primary key.
        let sql = format!(
            "SELECT {} FROM device_jobs AS j JOIN jobs AS k ON k.number = j.job
             WHERE {filter} AND j.job >= ?{number}
               AND (j.job, j.device_id, j.module_id) > (?{number}, ?{device}, ?{module})
             ORDER BY j.job, j.device_id, j.module_id",
            jobs::DEVICE_JOB_COLUMNS
        );
        let mut statement = self.db.prepare(&sql)?;
        let mut rows = statement.query(bind(&params))?;
        let mut items = Vec::new();
        let mut last = None;
        let mut more = false;
        while let Some(row) = rows.next()? {
            let job = jobs::decode_device_job(row)?;
            let document = job_document(&job);
            let key = format!("{} {}", job.number, job.identity);
            let keeps = match &self.select.filter {
                Some(filter) if !self.plan.exact => matches(filter, &JobRow(&document)),
                _ => true,
            };
            if keeps && items.len() == self.limit {
                more = true;
                break;
            }
            if keeps {
                items.push(Item::Job(document));
            }
            if items.len() < self.limit || keeps {
                last = Some(key);
            }
            if self.is_late() {
                more = true;
                break;
            }
        }
        Ok(Page {
            next: self.next(items.len(), last.filter(|_| more).map(Position::Row)),
            items,
        })
    }

    fn after_job(&self) -> Result<(i64, String, String), Fault> {
        let key = match &self.position {
            None => return Ok((0, String::new(), String::new())),
            Some(Position::Row(key)) => key,
            Some(_) => return Err(other_query()),
        };
        let parsed = key.split_once(' ').and_then(|(number, identity)| {
            let number = number.parse().ok()?;
            let identity = Identity::parse(identity).ok()?;
            Some((
                number,
                identity.device_id().to_owned(),
                module_column(&identity).to_owned(),
            ))
        });
        parsed.ok_or_else(other_query)
    }
}

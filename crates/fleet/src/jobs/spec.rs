//! What a service asks of a job, and its checks.

use std::time::Duration;

use holdfast_model::job::{JobSpec, JobWork};
use holdfast_model::limits::{
    JOB_EXECUTION_MAX_SECONDS, METHOD_BYTES_MAX, METHOD_CONNECT_TIMEOUT_MAX_SECONDS,
    METHOD_RESPONSE_TIMEOUT_SECONDS, QUERY_BYTES_MAX,
};
use holdfast_model::method::check_method_name;
use holdfast_model::twin::{ChangeMode, Twin};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_query::twin::{Condition, Filter, parse_condition};

/// How long a job may run if the service does not say.
const EXECUTION_DEFAULT: Duration = Duration::from_secs(3_600);

/// A job as a service asks for it.
#[derive(Clone, PartialEq, Debug)]
pub struct JobRequest {
    /// What to do at each target.
    pub work: JobWork,
    /// Which targets: a condition on devices, `FROM devices.modules WHERE` and one on modules, or `*`.
    pub condition: String,
    /// When to start; `None` or a time in the past is now.
    pub start_at: Option<Timestamp>,
    /// How long it may run; `None` is an hour.
    pub max_execution: Option<Duration>,
}

impl JobRequest {
    pub(super) fn check(self, now: Timestamp) -> Result<JobSpec, Error> {
        read_condition(&self.condition)?;
        check_work(&self.work, now)?;
        let max_execution_seconds = self.max_execution.unwrap_or(EXECUTION_DEFAULT).as_secs();
        if !(1..=JOB_EXECUTION_MAX_SECONDS).contains(&max_execution_seconds) {
            return Err(invalid(format!(
                "maxExecutionTimeInSeconds must be within [1; {JOB_EXECUTION_MAX_SECONDS}]"
            )));
        }
        Ok(JobSpec {
            work: self.work,
            condition: self.condition,
            max_execution_seconds,
        })
    }
}

/// Reads a condition that targets somebody.
pub(super) fn read_condition(text: &str) -> Result<Condition, Error> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(invalid(format!(
            "queryCondition has {} bytes; at most {QUERY_BYTES_MAX} are allowed",
            text.len()
        )));
    }
    let condition =
        parse_condition(text).map_err(|error| invalid(format!("queryCondition cannot be used: {error}")))?;
    if condition.filter == Filter::None {
        return Err(invalid(
            "queryCondition is missing; \"*\" targets all devices".to_owned(),
        ));
    }
    Ok(condition)
}

fn check_work(work: &JobWork, now: Timestamp) -> Result<(), Error> {
    match work {
        JobWork::UpdateTwin { tags, desired } => {
            if tags.is_none() && desired.is_none() {
                return Err(invalid(
                    "updateTwin has neither tags nor properties.desired".to_owned(),
                ));
            }
            let change = work.twin_change().unwrap_or_default();
            Twin::new(now)
                .apply(ChangeMode::Patch, &change, now)
                .map_err(|error| invalid(format!("updateTwin: {error}")))
        }
        JobWork::Method {
            name,
            payload,
            response_timeout,
            connect_timeout,
        } => {
            check_method_name(name)?;
            let (least, _, most) = METHOD_RESPONSE_TIMEOUT_SECONDS;
            if !(least..=most).contains(response_timeout) {
                return Err(invalid(format!(
                    "responseTimeoutInSeconds must be within [{least}; {most}]"
                )));
            }
            if *connect_timeout > METHOD_CONNECT_TIMEOUT_MAX_SECONDS {
                return Err(invalid(format!(
                    "connectTimeoutInSeconds must be within [0; {METHOD_CONNECT_TIMEOUT_MAX_SECONDS}]"
                )));
            }
            if payload.len() > METHOD_BYTES_MAX {
                return Err(invalid(format!(
                    "payload is larger than {METHOD_BYTES_MAX} bytes"
                )));
            }
            Ok(())
        }
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(condition: &str) -> JobRequest {
        JobRequest {
            work: JobWork::UpdateTwin {
                tags: json!({"a": 1}).as_object().cloned(),
                desired: None,
            },
            condition: condition.into(),
            start_at: None,
            max_execution: None,
        }
    }

    fn refused(request: JobRequest) -> String {
        let error = request
            .check(Timestamp::from_seconds(1))
            .expect_err("it must be refused");
        assert_eq!(error.code, ErrorCode::ArgumentInvalid);
        error.message
    }

    #[test]
    fn requests_are_checked() {
        let good = request("FROM devices.modules WHERE moduleId = 'm'").check(Timestamp::from_seconds(1));
        assert_eq!(good.expect("valid").max_execution_seconds, 3_600);
        assert!(refused(request("tags.a =")).contains("line 1, column"));
        assert!(refused(request(" ")).contains("missing"));
        assert!(refused(request(&"x".repeat(9_000))).contains("8192"));
        for seconds in [0, 48 * 3_600 + 1] {
            let request = JobRequest {
                max_execution: Some(Duration::from_secs(seconds)),
                ..request("*")
            };
            assert!(refused(request).contains("maxExecutionTimeInSeconds"));
        }
        let nothing = JobWork::UpdateTwin {
            tags: None,
            desired: None,
        };
        let bad_twin = JobWork::UpdateTwin {
            tags: json!({"a.b": 1}).as_object().cloned(),
            desired: None,
        };
        let method = |name: &str, response_timeout, connect_timeout| JobWork::Method {
            name: name.into(),
            payload: String::new(),
            response_timeout,
            connect_timeout,
        };
        for (work, why) in [
            (nothing, "neither"),
            (bad_twin, "tags"),
            (method("", 30, 0), "methodName"),
            (method("m", 4, 0), "responseTimeout"),
            (method("m", 30, 301), "connectTimeout"),
        ] {
            let request = JobRequest { work, ..request("*") };
            assert!(refused(request).contains(why), "{why}");
        }
    }
}

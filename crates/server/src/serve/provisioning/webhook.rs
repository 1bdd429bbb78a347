//! Webhooks of custom allocation.

use std::time::Duration;

use axum::body::Bytes;
use holdfast_ports::BoxFuture;
use holdfast_ports::enrollment::AllocationWebhook;
use tokio::sync::Semaphore;
use ureq::Agent;
use ureq::tls::RootCerts;

/// Webhooks asked at once; a hanging one holds a thread until its time is over.
const CALLS_MAX: usize = 64;
/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

pub(in crate::serve) struct HttpWebhook {
    agent: Agent,
    calls: Semaphore,
}

impl HttpWebhook {
    pub(in crate::serve) fn new(roots: RootCerts) -> Self {
        let agent = Agent::config_builder()
            .tls_config(crate::cli::client::tls(roots))
            .http_status_as_error(false)
            // The operator named one address, not whatever that one points to.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        HttpWebhook {
            agent,
            calls: Semaphore::new(CALLS_MAX),
        }
    }
}

impl AllocationWebhook for HttpWebhook {
    fn call<'a>(
        &'a self,
        url: &'a str,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<(u16, Bytes), String>> {
        Box::pin(async move {
            // The semaphore is never closed.
            let _place = self.calls.acquire().await.ok();
            let (agent, url) = (self.agent.clone(), url.to_owned());
            let call = move || post(&agent, &url, &body, timeout);
            tokio::task::spawn_blocking(call)
                .await
                .unwrap_or_else(|_| Err("the call was cut off".to_owned()))
        })
    }
}

fn post(agent: &Agent, url: &str, body: &[u8], timeout: Duration) -> Result<(u16, Bytes), String> {
    let mut response = agent
        .post(url)
        .config()
        .timeout_global(Some(timeout))
        .build()
        .header("content-type", "application/json; charset=utf-8")
        .send(body)
        .map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let answer = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_vec()
        .map_err(|error| error.to_string())?;
    Ok((status, Bytes::from(answer)))
}

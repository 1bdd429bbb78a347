//! What goes on while everything runs: signals, certificates, reprovisioning, the watchdog.

use std::sync::Arc;

use holdfast_agent::AgentHandle;
use holdfast_observe::Repeats;
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::process::{NotifyState, notify, watchdog_enabled};
use holdfast_program::signals::{Asked, Signals};
use holdfast_upstream::port::Proof;

use super::device_certificate::DeviceCertificate;
use super::hub_module::HubModule;
use super::identity::Accounts;
use super::{Base, End, UPKEEP};
use crate::memory::Thrift;
use crate::provisioning::Registrar;

static REFUSED: Repeats = Repeats::new();
static NO_ANSWER: Repeats = Repeats::new();
static NOT_RENEWED: Repeats = Repeats::new();
static CERTIFICATE_UNUSABLE: Repeats = Repeats::new();

/// What goes on while everything runs.
pub(super) struct Upkeep<'a> {
    pub(super) base: &'a Base,
    pub(super) hub: &'a Arc<HubModule>,
    pub(super) accounts: &'a Arc<Accounts>,
    pub(super) handle: &'a AgentHandle,
    pub(super) registrar: Option<&'a Registrar>,
    pub(super) certificate: Option<&'a Arc<DeviceCertificate>>,
}

impl Upkeep<'_> {
    /// Ends when the daemon is to.
    pub(super) async fn run(&self, signals: &mut Signals) -> anyhow::Result<End> {
        let mut failures = 0;
        let mut tick = tokio::time::interval(UPKEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        // What feeds it is this loop, so that a daemon whose upkeep hangs is started anew.
        let mut watchdog = tokio::time::interval(watchdog_enabled().map_or(UPKEEP, |within| within / 2));
        if self.base.device.from_memory && self.ask_service().await == Some(End::Reprovisioned) {
            return Ok(End::Reprovisioned);
        }
        let refused = self.accounts.refused();
        let mut thrift = Thrift::start();
        loop {
            tokio::select! {
                () = thrift.due() => thrift.carry_out(),
                asked = signals.next() => match asked {
                    Asked::Stop => {
                        tracing::info!("stopping; modules run on and are taken up again at the next start");
                        return Ok(End::Stopped);
                    }
                    Asked::Reload => {
                        self.certificates().await;
                        self.handle.refresh().await;
                    }
                },
                () = self.base.controls.reprovision.notified() => {
                    tracing::info!("asked to reprovision");
                    let _ = self.ask_service().await;
                    return Ok(End::Reprovisioned);
                }
                () = self.base.controls.reconcile.notified() => self.handle.refresh().await,
                () = refused.notified() => {
                    if self.refused().await == Some(End::Reprovisioned) {
                        return Ok(End::Reprovisioned);
                    }
                }
                _ = watchdog.tick() => notify(&[NotifyState::Watchdog]),
                () = self.key_lost() => {
                    tracing::warn!("the TPM does not take the device's key any more; the device registers again");
                    if self.ask_service().await == Some(End::Reprovisioned) {
                        return Ok(End::Reprovisioned);
                    }
                }
                _ = tick.tick() => {
                    self.certificates().await;
                    failures = if self.base.runtime.info().await.is_ok() { 0 } else { failures + 1 };
                    if self.base.settings.watchdog_retries.is_some_and(|most| failures > most) {
                        return Err(Failure::new(Kind::Unavailable, format!("the container engine did not answer {failures} times in a row"))
                            .hint("agent.watchdog_retries says how often it may; look at the engine (systemctl status docker)")
                            .into());
                    }
                }
            }
        }
    }

    async fn key_lost(&self) {
        match self.registrar {
            Some(registrar) => registrar.key_lost().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the service says something else than what this daemon runs with.
    async fn ask_service(&self) -> Option<End> {
        let answer = self.registrar?.ask().await;
        match answer {
            Ok((hub, device_id)) => {
                let same = hub == self.base.device.hub && device_id == self.base.device.device_id;
                if same {
                    return None;
                }
                tracing::warn!(
                    hub,
                    device = device_id,
                    "the device belongs to another hub now; starting anew"
                );
                Some(End::Reprovisioned)
            }
            Err(error) => {
                if let Some(times) = NO_ANSWER.happened(&self.base.device.device_id) {
                    tracing::warn!(%error, times, "the provisioning service gave no answer");
                }
                None
            }
        }
    }

    /// The hub refuses `$edgeAgent`: its keys may have been changed there, or the device belongs elsewhere.
    async fn refused(&self) -> Option<End> {
        if let Some(times) = REFUSED.happened(&self.base.device.device_id) {
            tracing::warn!(
                times,
                "the hub refuses $edgeAgent; its keys are set anew, and the provisioning service is asked"
            );
        }
        self.accounts.renew().await;
        self.ask_service().await
    }

    /// Takes up the device's certificate when its files hold another one. The modules' conversations rest on keys and go on.
    async fn device_certificate(&self) {
        let Some(known) = self.certificate else {
            return;
        };
        let known = Arc::clone(known);
        let found = tokio::task::spawn_blocking(move || known.renewed()).await;
        let outcome = match found {
            Ok(Ok(Some(certificate))) => {
                if let Some(registrar) = self.registrar {
                    registrar.set_certificate(&certificate);
                }
                let mut device = self.base.device.clone();
                device.proof = Proof::Certificate(certificate);
                self.accounts.use_device(&device)
            }
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!("the device's certificate is another one now"),
            Err(error) => {
                let error = error.to_string();
                if let Some(times) = CERTIFICATE_UNUSABLE.happened(&error) {
                    tracing::error!(
                        error,
                        times,
                        "the device's certificate cannot be read; the one in use stays"
                    );
                }
            }
        }
    }

    async fn certificates(&self) {
        self.device_certificate().await;
        let (certificates, hub) = (Arc::clone(&self.base.certificates), self.hub.hub());
        let renewing = tokio::task::spawn_blocking(move || {
            if certificates.ensure()? {
                tracing::info!("the edge CA is another one now");
            }
            hub.map_or(Ok(()), |hub| hub.renew_certificate())
        });
        if let Ok(Err(error)) = renewing.await {
            let error = format!("{error:#}");
            if let Some(times) = NOT_RENEWED.happened(&error) {
                tracing::error!(error, times, "certificates cannot be renewed; trying again");
            }
        }
    }
}

//! Puts the daemon together, runs it, and takes it apart again in order.

mod device_certificate;
mod home;
mod host;
mod hub;
mod hub_module;
mod identity;
mod metrics;
pub mod standalone;
mod twin;
mod upkeep;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use holdfast_agent::body::LogBounds;
use holdfast_agent::gc::ImageCollection;
use holdfast_agent::identities::ModuleIdentities;
use holdfast_agent::manifest::DesiredStatus;
use holdfast_agent::metrics::MetricLabels;
use holdfast_agent::reported::{AgentVersion, Platform};
use holdfast_agent::runtime::{ModuleRuntime, NetworkSpec};
use holdfast_agent::state::Seal;

use holdfast_agent::{Agent, AgentHandle, Parts, Rollback, Settings as AgentSettings, Surroundings};
use holdfast_docker::{DockerRuntime, Endpoint};
use holdfast_model::Timestamp;
use holdfast_observe::Registry;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::files;
use holdfast_program::process::{NotifyState, notify, raise_file_limit};
use holdfast_program::signals::Signals;
use holdfast_upstream::Upstream;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::certificates::Certificates;
use crate::config::{Loaded, Provisioning, Settings};
use crate::http::callers::Callers;
use crate::http::identity::IdentityApi;
use crate::http::management::{Control, HubOperation, Management};
use crate::http::server::{self, Served, Throttle};
use crate::http::workload::Workload;
use crate::identities::{Identities, ModuleSockets, Parts as IdentityParts};
use crate::keys::{FileKeys, KeyStore};
use crate::modules::{Modules, SystemImages};
use crate::provisioning::{self, Device};
use crate::sockets::{KnownGenerations, WORKLOAD_MODE, WorkloadSockets};
use crate::support::SupportBundle;
use crate::system::{SystemInfo, VERSION};
use crate::upload::Uploader;
use crate::upstream;

use device_certificate::DeviceCertificate;
use hub_module::{HubModule, Parts as HubParts};
use identity::Accounts;
use twin::CloudTwin;
use upkeep::Upkeep;

/// Owner and group may manage.
const MANAGEMENT_MODE: u32 = 0o660;
/// Between two looks at certificates and the engine.
const UPKEEP: Duration = Duration::from_secs(60);
/// For the agent's last report and the sessions of clients.
const FAREWELL: Duration = Duration::from_secs(10);

/// How the daemon ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Asked to.
    Stopped,
    /// It belongs to another hub or device now.
    Reprovisioned,
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// When it cannot start, or something that it cannot do without fails for good.
pub fn run(loaded: Loaded) -> anyhow::Result<ExitCode> {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    let runtime = runtime()?;
    let end = runtime.block_on(serve(loaded.settings))?;
    // Not waited for: a blocking write that hangs on a broken disk must not hold the process.
    runtime.shutdown_background();
    Ok(match end {
        End::Stopped => ExitCode::SUCCESS,
        End::Reprovisioned => ExitCode::from(Kind::Reprovisioned as u8),
    })
}

/// Few threads: an edge device has little memory, and one of them is enough for all but the edge hub under load.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("edge")
        .enable_all()
        .build()
}

/// What the APIs make the daemon do.
struct Controls {
    reprovision: Notify,
    reconcile: Notify,
    /// Empty while the daemon is being put together.
    hub: OnceLock<Arc<HubModule>>,
    /// As above.
    agent: OnceLock<AgentHandle>,
}

impl Control for Controls {
    fn deployment(&self) -> Value {
        let view = self.agent.get().map(AgentHandle::view).unwrap_or_default();
        let told = |version: Option<u64>, code: u16, description: &str| {
            json!({
                "lastDesiredVersion": version,
                "lastDesiredStatus": { "code": code, "description": description },
            })
        };
        let some = |version: u64| (version > 0).then_some(version);
        let hub = self.hub.get().and_then(|hub| hub.hub()?.broker().configuration());
        let status = &view.status;
        let mut outcome = told(some(status.version), status.code.number(), &status.description);
        outcome["versionInForce"] = json!(some(view.deployment_version));
        outcome["connected"] = json!(view.connected);
        outcome["edgeHub"] = json!(hub.map(|hub| told(hub.version, hub.code, &hub.description)));
        outcome
    }

    fn operate_hub(&self, operation: HubOperation) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            match self.hub.get() {
                Some(hub) => hub.operate(operation).await,
                None => Err("the daemon is being started".to_owned()),
            }
        })
    }

    fn reprovision(&self) {
        self.reprovision.notify_one();
    }

    fn reconcile(&self) {
        self.reconcile.notify_one();
    }
}

/// What the parts of the daemon share.
struct Base {
    settings: Settings,
    clock: Arc<dyn Clock>,
    started_at: Timestamp,
    keys: Arc<FileKeys>,
    device: Device,
    runtime: Arc<dyn ModuleRuntime>,
    certificates: Arc<Certificates>,
    modules: Arc<Modules>,
    system: Arc<SystemInfo>,
    bundles: Arc<SupportBundle>,
    controls: Arc<Controls>,
}

async fn serve(settings: Settings) -> anyhow::Result<End> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let _home = home::take(&settings)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = FileKeys::open(&settings.identity_folder(), settings.encryption_key.as_ref());
    let keys = Arc::new(keys.map_err(|error| Failure::storage(error.to_string()))?);
    let provisioned = tokio::select! {
        provisioned = provisioning::provision(&settings, &keys, &clock) => provisioned?,
        () = signals.stop_again() => return Ok(End::Stopped),
    };
    let (device, registrar) = provisioned;
    let base = base(settings, clock, keys, device)?;
    let mut running = start(base).await?;
    tracing::info!(
        hub = running.base.device.hub,
        device = running.base.device.device_id,
        version = VERSION,
        "the edge runtime is up"
    );
    notify(&[NotifyState::Ready]);
    let certificate = DeviceCertificate::of(&running.base.settings).map(Arc::new);
    let upkeep = Upkeep {
        base: &running.base,
        hub: &running.hub,
        accounts: &running.accounts,
        handle: &running.handle,
        registrar: registrar.as_ref(),
        certificate: certificate.as_ref(),
    };
    let end = tokio::select! {
        end = upkeep.run(&mut signals) => end,
        outcome = &mut running.agent => Err(ended(outcome)),
    };
    notify(&[NotifyState::Stopping]);
    running.stop(&mut signals).await;
    end
}

/// Everything that runs.
struct Running {
    base: Arc<Base>,
    hub: Arc<HubModule>,
    accounts: Arc<Accounts>,
    handle: AgentHandle,
    agent: JoinHandle<()>,
    tasks: JoinSet<()>,
    apis: Apis,
    stop: watch::Sender<bool>,
}

/// Opens and starts all parts.
async fn start(base: Base) -> anyhow::Result<Running> {
    let mut registry = Registry::new();
    registry.process_metrics();
    let upstream = upstream::open(
        &base.settings,
        &base.device.hub,
        Arc::clone(&base.clock),
        holdfast_upstream::Metrics::register(&mut registry),
    )?;
    let (identities, sockets) = identities(&base, &upstream)?;
    forget_other_device(&base).await?;
    let certificates = Arc::clone(&base.certificates);
    tokio::task::spawn_blocking(move || certificates.ensure()).await??;

    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let accounts = Accounts::new(&base, &upstream, Arc::clone(&identities));
    let base = Arc::new(base);
    let hub = HubModule::new(HubParts {
        base: Arc::clone(&base),
        upstream: upstream.clone(),
        identities: Arc::clone(&identities),
        metrics: holdfast_heads::events::Metrics::register(&mut registry),
    });
    let _ = base.controls.hub.set(Arc::clone(&hub));
    let (agent, handle) = agent(&base, &accounts, &identities, &hub)?;
    let _ = base.controls.agent.set(handle.clone());
    // First what may be refused, and last the sockets: they take the place of those of a process that may still be there.
    serve_metrics(&mut tasks, &base, &accounts, &handle, &hub, Arc::new(registry))?;
    let apis = serve_apis(&base, &identities, &sockets)?;
    let mut stopped = stopped;
    let agent = tokio::spawn(agent.run(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    tasks.spawn(Arc::clone(&accounts).keep());
    tasks.spawn(follow_deployment(Arc::clone(&base.modules), handle.clone()));
    Ok(Running {
        base,
        hub,
        accounts,
        handle,
        agent,
        tasks,
        apis,
        stop,
    })
}

impl Running {
    /// Ends everything in order; modules run on.
    async fn stop(mut self, signals: &mut Signals) {
        let _ = self.stop.send(true);
        let agent = async {
            if !self.agent.is_finished() {
                let _ = (&mut self.agent).await;
            }
        };
        let farewell = async { tokio::join!(agent, self.hub.stop()) };
        tokio::select! {
            _ = tokio::time::timeout(FAREWELL, farewell) => {}
            () = signals.stop_again() => tracing::warn!("stopped at once"),
        }
        drop(self.apis);
        self.tasks.shutdown().await;
    }
}

fn ended(outcome: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    let why = match outcome {
        Ok(()) => "it ended by itself".to_owned(),
        Err(error) => error.to_string(),
    };
    Failure::new(Kind::Failed, format!("the agent has failed: {why}"))
        .hint("the service manager starts the daemon again; modules run on")
        .into()
}

fn base(
    settings: Settings,
    clock: Arc<dyn Clock>,
    keys: Arc<FileKeys>,
    device: Device,
) -> Result<Base, Failure> {
    let endpoint = Endpoint::parse(&format!("unix://{}", settings.engine.socket.display()))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let runtime: Arc<dyn ModuleRuntime> = Arc::new(DockerRuntime::new(endpoint));
    let started_at = clock.now();
    Ok(Base {
        certificates: Arc::new(Certificates::new(
            &settings,
            &device.device_id,
            Arc::clone(&clock),
        )),
        modules: Arc::new(Modules::new(Arc::clone(&runtime), started_at)),
        system: Arc::new(SystemInfo::new(&settings)?),
        bundles: Arc::new(SupportBundle::new(
            Arc::clone(&runtime),
            settings.engine.network.clone(),
            &settings.home,
            Some(settings.source.clone().into()),
        )),
        controls: Arc::new(Controls {
            reprovision: Notify::new(),
            reconcile: Notify::new(),
            hub: OnceLock::new(),
            agent: OnceLock::new(),
        }),
        settings,
        clock,
        started_at,
        keys,
        device,
        runtime,
    })
}

/// Identities of modules with the sockets that go with them.
fn identities(base: &Base, upstream: &Upstream) -> Result<(Arc<Identities>, Arc<WorkloadSockets>), Failure> {
    let generations = Arc::new(KnownGenerations::default());
    let workload = Arc::new(Workload {
        callers: Callers::new(Arc::clone(&base.runtime)),
        keys: Arc::clone(&base.keys) as Arc<dyn KeyStore>,
        certificates: Arc::clone(&base.certificates),
        generations: Arc::clone(&generations) as _,
        modules: Arc::clone(&base.modules),
        hub: base.device.hub.clone(),
        device_id: base.device.device_id.clone(),
    });
    let sockets = Arc::new(WorkloadSockets::new(
        base.settings.workload_folders(),
        workload,
        Throttle::new(base.settings.sockets.workload_requests_max),
    ));
    let identities = Arc::new(Identities::open(IdentityParts {
        hub: base.device.hub.clone(),
        device_id: base.device.device_id.clone(),
        registry: Arc::new(upstream.registry(base.device.account()?)),
        keys: Arc::clone(&base.keys) as Arc<dyn KeyStore>,
        sockets: Arc::clone(&sockets) as Arc<dyn ModuleSockets>,
        prefer_kept: base.settings.prefer_cached_identities,
        path: base.settings.identity_folder().join("modules.json"),
    }));
    generations.set(&identities);
    Ok((identities, sockets))
}

/// Containers that were made for another device or hub are removed: they would speak for somebody who is gone.
async fn forget_other_device(base: &Base) -> anyhow::Result<()> {
    let path = base.settings.identity_folder().join("account.json");
    let account = json!({
        "hub": base.device.hub,
        "deviceId": base.device.device_id,
        "gateway": base.settings.parent_hostname,
    })
    .to_string();
    let kept = files::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if kept.as_deref() == Some(account.as_bytes()) {
        return Ok(());
    }
    if kept.is_some() {
        tracing::warn!("the device belongs to another hub or is another device now; its modules are removed");
        let containers = base.runtime.list().await.map_err(|error| {
            Failure::new(
                Kind::Unavailable,
                format!("modules of the device's earlier identity cannot be removed: {error}"),
            )
            .hint("start the container engine; the daemon tries again when it is started")
        })?;
        for container in containers {
            base.runtime
                .remove(&container.name)
                .await
                .with_context(|| format!("cannot remove the module {}", container.name))?;
        }
        let _ = std::fs::remove_dir_all(base.settings.home.join("agent"));
    }
    files::write(&path, account.as_bytes(), files::PRIVATE)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn agent(
    base: &Base,
    accounts: &Arc<Accounts>,
    identities: &Arc<Identities>,
    hub: &Arc<HubModule>,
) -> anyhow::Result<(Agent, AgentHandle)> {
    let settings = &base.settings;
    let parts = Parts {
        runtime: Arc::clone(&base.runtime),
        identities: Arc::clone(identities) as Arc<dyn ModuleIdentities>,
        twin: Arc::new(CloudTwin::new(accounts.agent(), accounts.refused())),
        host: Arc::new(host::DaemonHost {
            started_at: base.started_at,
            hub: Arc::clone(hub),
            uploader: Uploader::new(upstream::trust(settings)?),
            bundles: Arc::clone(&base.bundles),
        }),
        clock: Arc::clone(&base.clock),
    };
    let labels = MetricLabels {
        iothub: base.device.hub.clone(),
        edge_device: base.device.device_id.clone(),
        instance_number: accounts.instance().to_owned(),
        version: VERSION.to_owned(),
    };
    let mut settings = agent_settings(base);
    settings.seal = Arc::new(Sealed(Arc::clone(&base.keys)));
    Agent::new(settings, parts, labels).context("cannot open the agent's state")
}

/// Deployments on the disk are encrypted: users keep secrets in them.
struct Sealed(Arc<FileKeys>);

impl Seal for Sealed {
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        self.0.seal("agent", plain).map_err(|error| error.to_string())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let opened = self.0.open_sealed("agent", sealed);
        opened
            .map(|plain| plain.to_vec())
            .map_err(|error| error.to_string())
    }
}

fn agent_settings(base: &Base) -> AgentSettings {
    let settings = &base.settings;
    let find = |name: &str| {
        let mut env = settings.agent.env.iter();
        env.find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
    };
    let surroundings = Surroundings {
        hub_host: base.device.hub.clone(),
        device_id: base.device.device_id.clone(),
        gateway_host: settings.hostname.clone(),
        parent_host: settings.parent_hostname.clone(),
        network: settings.engine.network.clone(),
        // The agent asks the engine.
        gateway_address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        workload_uri: format!("unix://{}", settings.sockets.module_workload.display()),
        workload_folder: settings.workload_folders(),
        log_level: find("RuntimeLogLevel").unwrap_or_else(|| "info".to_owned()),
        upstream_protocol: find("UpstreamProtocol"),
        allow_elevated: settings.elevated_modules,
        log_bounds: Some(LogBounds::default()),
    };
    let mut agent = AgentSettings::new(surroundings, settings.home.join("agent"));
    agent.network = NetworkSpec {
        name: settings.engine.network.clone(),
        options: settings.engine.network_options.clone(),
    };
    agent.version = AgentVersion {
        version: VERSION.to_owned(),
        ..AgentVersion::default()
    };
    agent.platform = Platform {
        os: "linux".to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        version: VERSION.to_owned(),
    };
    agent.env.clone_from(&settings.agent.env);
    if let Some((address, user, password)) = &settings.agent.registry {
        for (name, value) in [
            ("serverAddress", address),
            ("username", user),
            ("password", password),
        ] {
            agent
                .env
                .insert(format!("DockerRegistryAuth__0__{name}"), value.clone());
        }
    }
    agent.rollback = settings.rollback.enabled.then(|| Rollback {
        healthy_within: settings.rollback.after,
        ..Rollback::default()
    });
    agent.image_collection = settings.images.enabled.then(|| ImageCollection {
        time_of_day: Duration::from_secs(u64::from(settings.images.at_minutes) * 60),
        recurrence: settings.images.every,
        age: settings.images.age,
    });
    agent
}

/// Sockets that are served as long as this is kept.
struct Apis {
    _served: Vec<Served>,
    _sockets: Arc<WorkloadSockets>,
}

fn serve_apis(
    base: &Base,
    identities: &Arc<Identities>,
    sockets: &Arc<WorkloadSockets>,
) -> Result<Apis, Failure> {
    let settings = &base.settings;
    let throttle = Throttle::new(settings.sockets.management_requests_max);
    let management = Management {
        modules: Arc::clone(&base.modules),
        identities: Arc::clone(identities) as Arc<dyn ModuleIdentities>,
        system: Arc::clone(&base.system),
        bundles: Arc::clone(&base.bundles),
        control: Arc::clone(&base.controls) as Arc<dyn Control>,
    };
    let identity = IdentityApi {
        hub: base.device.hub.clone(),
        gateway: settings
            .parent_hostname
            .clone()
            .unwrap_or_else(|| base.device.hub.clone()),
        device_id: base.device.device_id.clone(),
        authentication: match base.device.proof {
            holdfast_upstream::port::Proof::Certificate(_) => "x509",
            _ => "sas",
        },
        source: match settings.provisioning {
            Provisioning::Manual { .. } => "manual",
            Provisioning::Dps { .. } => "dps",
        },
        certificates: Arc::clone(&base.certificates),
        control: Arc::clone(&base.controls) as Arc<dyn Control>,
    };
    let beside = settings.sockets.management.with_file_name("identityd.sock");
    Ok(Apis {
        _served: vec![
            server::serve(
                &settings.sockets.management,
                MANAGEMENT_MODE,
                management,
                throttle.clone(),
            )?,
            server::serve(&beside, MANAGEMENT_MODE, identity, throttle)?,
            server::serve(
                &settings.sockets.workload,
                WORKLOAD_MODE,
                Arc::clone(sockets.api()),
                sockets.throttle().clone(),
            )?,
        ],
        _sockets: Arc::clone(sockets),
    })
}

fn serve_metrics(
    tasks: &mut JoinSet<()>,
    base: &Base,
    accounts: &Accounts,
    handle: &AgentHandle,
    hub: &Arc<HubModule>,
    registry: Arc<Registry>,
) -> Result<(), Failure> {
    let Some(address) = base.settings.listen.metrics else {
        return Ok(());
    };
    let listener = metrics::bind(address)?;
    let (handle, hub) = (handle.clone(), Arc::clone(hub));
    let labels = [
        ("iothub", base.device.hub.clone()),
        ("edge_device", base.device.device_id.clone()),
        ("instance_number", accounts.instance().to_owned()),
    ];
    let render = move || {
        let mut text = handle.metrics().render();
        let labels: Vec<(&str, &str)> = labels
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        if let Some(hub) = hub.hub() {
            text.push_str(&hub.broker().metrics_text(&labels));
        }
        text.push_str(&registry.render());
        text
    };
    tasks.spawn(metrics::serve(listener, Arc::new(render)));
    Ok(())
}

/// Keeps what a deployment says of modules and what their list and its callers are told: the images of the system modules,
/// and who is to be stopped.
async fn follow_deployment(modules: Arc<Modules>, handle: AgentHandle) {
    let mut deployment = handle.deployment();
    loop {
        let current = deployment.borrow_and_update().clone();
        if let Some(current) = current {
            let image = |spec: &Option<holdfast_agent::manifest::ModuleSpec>| {
                spec.as_ref().map(|spec| spec.image.clone())
            };
            modules.set_images(SystemImages {
                agent: image(&current.edge_agent).unwrap_or_default(),
                hub: image(&current.edge_hub),
            });
            let specs = current.modules.values().chain(&current.edge_hub);
            let stopped = specs.filter(|spec| spec.status == DesiredStatus::Stopped);
            modules.set_stopped(stopped.map(|spec| spec.name.clone()).collect());
        }
        if deployment.changed().await.is_err() {
            return;
        }
    }
}

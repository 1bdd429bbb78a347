//! Servers under test as child processes: a fresh hub, or Debian's Mosquitto.
//!
//! A child ends with its handle, and with this process when a signal ends it; its directory goes with it.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_program::failure::{Failure, Kind};
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use rustix::process::{Pid, Signal};

use crate::cli::profile::Login;
use crate::serve::connection_env as variables;

/// A child that is not ready after this time has failed.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for a child to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Type number of tmpfs in `statfs`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Children and directories to take along when a signal ends this process.
static LEFTOVERS: Mutex<Vec<Leftover>> = Mutex::new(Vec::new());

enum Leftover {
    Process(u32),
    Directory(PathBuf),
}

fn with_leftovers<R>(action: impl FnOnce(&mut Vec<Leftover>) -> R) -> R {
    action(&mut LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Ends children and removes directories before SIGINT or SIGTERM ends this process. Without it a cancelled run would
/// leave a hub behind, and the gigabytes of its log.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let watcher = std::thread::Builder::new().name("signals".to_owned());
        let spawned = watcher.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                clean_up();
                std::process::exit(130);
            });
        });
        // Without the watcher a cancelled run leaves its children behind, but measures as well.
        drop(spawned);
    });
}

fn clean_up() {
    with_leftovers(|leftovers| {
        for leftover in leftovers.iter() {
            if let Leftover::Process(pid) = leftover {
                send(*pid, Signal::KILL);
            }
        }
        for leftover in leftovers.iter() {
            if let Leftover::Directory(path) = leftover {
                let _ = fs::remove_dir_all(path);
            }
        }
    });
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that ended meanwhile is what was wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A directory that is removed with its content.
pub(crate) struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes an empty directory below `parent`, or where the system keeps temporary files.
    pub(crate) fn new(parent: Option<&Path>) -> anyhow::Result<WorkDir> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("holdfast-bench-{}-{number}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        watch_signals();
        with_leftovers(|leftovers| leftovers.push(Leftover::Directory(path.clone())));
        Ok(WorkDir { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory lives in memory, where syncing costs nothing and proves nothing.
    pub(crate) fn is_in_memory(&self) -> bool {
        rustix::fs::statfs(&self.path).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        with_leftovers(|leftovers| {
            leftovers.retain(|leftover| !matches!(leftover, Leftover::Directory(path) if *path == self.path));
        });
    }
}

/// A child process that ends with its handle.
struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, name: &'static str, log: PathBuf) -> anyhow::Result<Process> {
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        watch_signals();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        with_leftovers(|leftovers| leftovers.push(Leftover::Process(child.id())));
        Ok(Process { child, name, log })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the child's log if it has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failure(&format!("ended with {status}"))),
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        Failure::new(Kind::Failed, format!("{} {what}; it said:\n  {tail}", self.name)).into()
    }

    fn stop(&mut self) {
        send(self.pid(), Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < STOP_TIMEOUT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = self.pid();
        self.stop();
        with_leftovers(|leftovers| {
            leftovers.retain(|leftover| !matches!(leftover, Leftover::Process(other) if *other == pid));
        });
    }
}

/// A hub of our own, with a data directory of its own.
pub(crate) struct Hub {
    process: Process,
    /// Where and as whom to talk to it.
    pub(crate) login: Login,
    /// Time from starting the program until it said that it is ready.
    pub(crate) start: Duration,
}

impl Hub {
    /// Starts this program's `serve` on free ports of 127.0.0.1 and waits until it is ready.
    pub(crate) fn start(data_dir: &Path) -> anyhow::Result<Hub> {
        // The service manager's protocol tells the moment of readiness without polling.
        let notify = data_dir.with_extension("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)
            .with_context(|| format!("cannot make the socket {}", notify.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            // Variables of another hub must not leak into this one.
            if name.to_string_lossy().starts_with("HOLDFAST_") {
                command.env_remove(name);
            }
        }
        command
            .env("NOTIFY_SOCKET", &notify)
            .args(["serve", "--no-profile", "--log", "warn", "--listen", "127.0.0.1"])
            .args([
                "--mqtt-port",
                "0",
                "--amqp-port",
                "0",
                "--https-port",
                "0",
                "--mqtt-plain",
                "127.0.0.1:0",
                "--amqp-plain",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--host", "localhost"]);
        let started = Instant::now();
        let mut process = Process::start(command, "holdfast serve", data_dir.with_extension("log"))?;
        await_ready(&socket, &mut process, started)?;
        let start = started.elapsed();
        let _ = fs::remove_file(&notify);
        let login = read_login(data_dir)?;
        Ok(Hub {
            process,
            login,
            start,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn await_ready(socket: &UnixDatagram, process: &mut Process, started: Instant) -> anyhow::Result<()> {
    let mut message = [0u8; 4_096];
    while started.elapsed() < READY_TIMEOUT {
        if let Ok(length) = socket.recv(&mut message)
            && message[..length]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1")
        {
            return Ok(());
        }
        process.check()?;
    }
    Err(process.failure(&format!(
        "was not ready after {} seconds",
        READY_TIMEOUT.as_secs()
    )))
}

/// The login in `connection.env`, and nothing of this process's environment, which may be of another hub.
fn read_login(data_dir: &Path) -> anyhow::Result<Login> {
    let path = data_dir.join(variables::FILE_NAME);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let values = variables::parse(&text);
    let value = |name: &str| {
        let value = values.get(name).cloned();
        value.with_context(|| format!("{} has no {name}", path.display()))
    };
    let parsed = ConnectionString::parse(&value(variables::OWNER_CS)?)?;
    let (Party::Service, Credential::Policy { name, key }) = (parsed.party, parsed.credential) else {
        anyhow::bail!("{} names no policy", path.display());
    };
    Ok(Login {
        host: parsed.host,
        policy: name,
        key,
        https_port: value(variables::HTTPS_PORT)?.parse()?,
        mqtt_port: value(variables::MQTT_PORT)?.parse()?,
        mqtt_plain: Some(value(variables::MQTT_PLAIN)?),
        amqp_port: value(variables::AMQP_PORT)?.parse()?,
        amqp_plain: Some(value(variables::AMQP_PLAIN)?),
        ca: Some(value(variables::CA)?.into()),
        source: path.display().to_string(),
    })
}

/// An edge hub of our own, without agent and without a hub above.
pub(crate) struct EdgeHub {
    process: Process,
    address: SocketAddr,
}

impl EdgeHub {
    /// File of the manifest in the working directory.
    pub(crate) const MANIFEST: &'static str = "manifest.json";
    /// File of the identities there.
    pub(crate) const IDENTITIES: &'static str = "identities.json";

    /// The program beside this one; in a build directory the one of cargo's profile `size`.
    fn program() -> anyhow::Result<PathBuf> {
        let this = std::env::current_exe().context("cannot find this program")?;
        let built = this
            .ancestors()
            .nth(2)
            .map(|folder| folder.join("size").join("holdfast-edge"));
        Ok(built
            .filter(|program| program.is_file())
            .unwrap_or_else(|| this.with_file_name("holdfast-edge")))
    }

    /// Starts `holdfast-edge broker` on free ports with the files in `dir` and waits until it is ready.
    pub(crate) fn start(
        program: Option<PathBuf>,
        dir: &Path,
        device: &str,
        hub: &str,
    ) -> anyhow::Result<EdgeHub> {
        let program = match program {
            Some(program) => program,
            None => Self::program()?,
        };
        let mut command = Command::new(&program);
        command
            .args([
                "broker",
                "--output",
                "json",
                "--log",
                "warn",
                "--hostname",
                "localhost",
            ])
            .args(["--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0"])
            .args(["--device-id", device, "--hub-host", hub])
            .arg("--manifest")
            .arg(dir.join(Self::MANIFEST))
            .arg("--identities")
            .arg(dir.join(Self::IDENTITIES))
            .arg("--data-dir")
            .arg(dir.join("data"));
        let log = dir.join("edge.log");
        let mut process = Process::start(command, "holdfast-edge broker", log.clone())
            .with_context(|| format!("{} cannot be started; --program names it", program.display()))?;
        let started = Instant::now();
        loop {
            let told = fs::read_to_string(&log).unwrap_or_default();
            let told = told
                .lines()
                .find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            if let Some(port) = told.and_then(|told| told.get("mqttPort")?.as_u64()) {
                let port = u16::try_from(port).context("no port")?;
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                return Ok(EdgeHub { process, address });
            }
            process.check()?;
            if started.elapsed() > READY_TIMEOUT {
                return Err(process.failure("does not tell its ports"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// MQTT over TLS, as modules use it.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Debian's Mosquitto, configured like the hub: no persistence to disk, no limits that would slow it down.
pub(crate) struct Mosquitto {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Mosquitto {
    pub(crate) fn start(dir: &Path, tls: bool) -> anyhow::Result<Mosquitto> {
        let program = mosquitto_program()?;
        let address = free_address()?;
        let config = dir.join("mosquitto.conf");
        fs::write(&config, mosquitto_config(dir, address, tls)?)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config);
        let mut process = Process::start(command, "mosquitto", dir.join("mosquitto.log"))?;
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            process.check()?;
            if started.elapsed() > READY_TIMEOUT {
                return Err(process.failure("does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Mosquitto { process, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn mosquitto_config(dir: &Path, address: SocketAddr, tls: bool) -> anyhow::Result<String> {
    let mut text = format!(
        "listener {} {}\nallow_anonymous true\npersistence false\nlog_dest stderr\nlog_type error\n\
         max_inflight_messages 0\nmax_queued_messages 0\nmax_connections -1\nset_tcp_nodelay true\n",
        address.port(),
        address.ip()
    );
    if rustix::process::geteuid().is_root() {
        // Else it would become the user `mosquitto`, who cannot read this directory.
        text.push_str("user root\n");
    }
    if tls {
        let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        // The same kind as the hub's: P-256.
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        fs::write(&certificate, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        let _ = write!(
            text,
            "certfile {}\nkeyfile {}\n",
            certificate.display(),
            key.display()
        );
    }
    Ok(text)
}

/// Where `mosquitto` is: Debian puts it where users do not search.
fn mosquitto_program() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|dir| dir.join("mosquitto"))
        .find(|program| program.is_file());
    found.ok_or_else(|| {
        Failure::new(Kind::Failed, "mosquitto, the broker to compare with, is not installed")
            .hint("apt-get install mosquitto (its service need not run), or measure the hub alone: holdfast bench ingest")
            .into()
    })
}

/// What `mosquitto -h` calls itself.
pub(crate) fn mosquitto_version() -> anyhow::Result<String> {
    let output = Command::new(mosquitto_program()?).arg("-h").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(2));
    Ok(version.unwrap_or("of unknown version").to_owned())
}

/// An address that nobody listens on at this moment.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_directories_go_with_their_content() {
        let dir = WorkDir::new(None).unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_child_that_ends_at_once_is_reported_with_its_words() {
        let dir = WorkDir::new(None).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no luck >&2; exit 3"]);
        let mut process = Process::start(command, "the child", dir.path().join("log")).unwrap();
        let error = loop {
            if let Err(error) = process.check() {
                break error.to_string();
            }
            std::thread::yield_now();
        };
        assert!(
            error.contains("the child ended") && error.contains("no luck"),
            "{error}"
        );
    }

    #[test]
    fn a_child_ends_with_its_handle() {
        let dir = WorkDir::new(None).unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::start(command, "the child", dir.path().join("log")).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}

//! Running other programs: to the end with their output shown and kept, or as a service that is stopped by
//! its process id. Children stay in our process group, so that Ctrl-C reaches them too.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition without a notification is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| {
        let arg = arg.to_string_lossy();
        if arg.is_empty() || arg.contains([' ', '"', '{', '$', ';', '&']) {
            format!("'{arg}'")
        } else {
            arg.into_owned()
        }
    }));
    words.join(" ")
}

/// Whether a program of this name is on the search path.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Runs a command with its output on the terminal; an error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start: {}", shown(command)))?;
    if !status.success() {
        bail!("this command failed ({status}): {}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; an error with both outputs when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {}", shown(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let text = format!("{}\n{}", stdout.trim(), stderr.trim());
        bail!(
            "this command failed ({}): {}\n{}",
            output.status,
            shown(command),
            tail(&text, 20)
        );
    }
    Ok(stdout)
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What came of a command run by [`tee`].
pub(crate) struct Outcome {
    pub(crate) success: bool,
    /// Standard output and standard error, line by line as they came.
    pub(crate) lines: Vec<String>,
    /// Why it counts as failed, when its own output does not tell.
    pub(crate) note: Option<String>,
}

/// Runs a command to its end, shows its output and keeps it. After `timeout` it is ended, with its children.
pub(crate) fn tee(command: &mut Command, timeout: Duration) -> Result<Outcome> {
    let lines = Arc::new(Lines::default());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start: {}", shown(command)))?;
    let readers = read_both(&mut child, &lines, &|line| crate::say(line));
    let (status, note) = match wait(&mut child, timeout)? {
        Some(status) => (Some(status), None),
        None => {
            end_tree(child.id());
            child.wait().context("cannot wait for a child that was ended")?;
            (None, Some(format!("ended after {} s", timeout.as_secs())))
        }
    };
    finish(readers);
    let success = status.is_some_and(|status| status.success());
    Ok(Outcome {
        success,
        lines: lines.all(),
        note,
    })
}

/// Waits for the child, at most `timeout`.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Lines that a child has printed so far, with a signal for those who wait for one.
#[derive(Default)]
struct Lines {
    state: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        self.lock().push(line);
        self.changed.notify_all();
    }

    fn all(&self) -> Vec<String> {
        self.lock().clone()
    }
}

/// Reads both outputs of a child in threads of their own.
fn read_both(
    child: &mut Child,
    lines: &Arc<Lines>,
    show: &'static (dyn Fn(&str) + Sync),
) -> Vec<JoinHandle<()>> {
    let stdout = child
        .stdout
        .take()
        .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let stderr = child
        .stderr
        .take()
        .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let read = |pipe| {
        let lines = Arc::clone(lines);
        std::thread::spawn(move || {
            each_line(pipe, &mut |line| {
                show(&line);
                lines.push(line);
            })
        })
    };
    [stdout, stderr].into_iter().flatten().map(read).collect()
}

/// Calls `take` for each line, whatever bytes it holds.
fn each_line(pipe: Box<dyn Read + Send>, take: &mut dyn FnMut(String)) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
        take(
            String::from_utf8_lossy(&bytes)
                .trim_end_matches(['\n', '\r'])
                .to_owned(),
        );
        bytes.clear();
    }
}

/// Joins reader threads, but not for ever: a grandchild that outlives the child keeps the pipe open.
fn finish(readers: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + Duration::from_secs(3);
    for reader in readers {
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        if reader.is_finished() {
            let _ = reader.join();
        }
    }
}

/// A program that runs until it is stopped. Stopped when dropped.
pub(crate) struct Service {
    name: &'static str,
    child: Child,
    lines: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    log: PathBuf,
}

impl Service {
    /// Starts the program. Standard output is kept line by line; standard error goes to `LOG_DIR/NAME.log`.
    pub(crate) fn start(name: &'static str, command: &mut Command, log_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(log_dir).with_context(|| format!("cannot make {}", log_dir.display()))?;
        let log = log_dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = dying_with_us(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start: {}", shown(&command)))?;
        let lines = Arc::new(Lines::default());
        let readers = read_both(&mut child, &lines, &|_| {});
        Ok(Self {
            name,
            child,
            lines,
            readers,
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of standard output so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.all()
    }

    /// The end of standard error.
    pub(crate) fn log_tail(&self) -> String {
        tail(&std::fs::read_to_string(&self.log).unwrap_or_default(), 15)
    }

    /// Whether the program still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the lines of standard output satisfy `find`, which returns what was looked for.
    pub(crate) fn wait_lines<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        find: impl Fn(&[String]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            // Asked before the lines are looked at, so that the last lines of a program that ended count.
            let running = self.is_running();
            if !running {
                finish(std::mem::take(&mut self.readers));
            }
            let lines = Arc::clone(&self.lines);
            let guard = lines.lock();
            if let Some(found) = find(&guard) {
                return Ok(found);
            }
            let last = guard.last().cloned().unwrap_or_default();
            if !running {
                bail!(
                    "{} ended before {what}; its last line: {last}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if Instant::now() >= deadline {
                let seconds = timeout.as_secs();
                bail!(
                    "no {what} within {seconds} s; last line of {}: {last}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            drop(lines.changed.wait_timeout(guard, Duration::from_millis(100)));
        }
    }

    /// Waits for the program to end by itself.
    pub(crate) fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        match wait(&mut self.child, timeout)? {
            Some(status) => Ok(status),
            None => bail!("{} still runs after {} s", self.name, timeout.as_secs()),
        }
    }

    /// Asks the program to end (SIGTERM) and waits; after `grace` it is killed, and that is an error.
    pub(crate) fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        signal("TERM", self.child.id());
        if let Some(status) = wait(&mut self.child, grace)? {
            return Ok(status);
        }
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))?;
        bail!(
            "{} did not end within {} s of SIGTERM and was killed",
            self.name,
            grace.as_secs()
        )
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.stop(Duration::from_secs(5));
        }
        finish(std::mem::take(&mut self.readers));
    }
}

/// Lets the kernel end the child when we are killed without a chance to clean up, where `setpriv` is there.
fn dying_with_us(command: &mut Command) -> Command {
    let mut wrapped = match on_path("setpriv") {
        Some(setpriv) => {
            let mut wrapped = Command::new(setpriv);
            wrapped
                .args(["--pdeathsig", "TERM", "--"])
                .arg(command.get_program());
            wrapped
        }
        None => Command::new(command.get_program()),
    };
    wrapped.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// Sends a signal to one process. That it has ended already is no error.
fn signal(name: &str, pid: u32) {
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Ends a process and those it started, children first found by their parent's id.
fn end_tree(pid: u32) {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let children = children_of(all[next]);
        all.extend(
            children
                .into_iter()
                .filter(|child| !all.contains(child))
                .collect::<Vec<_>>(),
        );
        next += 1;
    }
    for pid in all.iter().rev() {
        signal("TERM", *pid);
    }
    std::thread::sleep(Duration::from_secs(2));
    for pid in all.iter().rev() {
        signal("KILL", *pid);
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    // Each thread lists the children that it started.
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Prints without a line end, so that a step's outcome can follow on the same line.
#[expect(clippy::print_stdout, reason = "a task runner talks on standard output")]
pub(crate) fn say_part(text: &str) {
    print!("{text}");
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn dir() -> PathBuf {
        std::env::temp_dir().join(format!("holdfast-xtask-test-{}", std::process::id()))
    }

    #[test]
    fn output_holds_both_streams_on_failure() {
        assert_eq!(output(&mut sh("echo hi")).unwrap(), "hi\n");
        let error = output(&mut sh("echo out; echo err >&2; exit 3"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("out") && error.contains("err") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn tee_keeps_lines_and_ends_what_hangs() {
        let outcome = tee(&mut sh("echo a; echo b >&2; exit 1"), Duration::from_secs(10)).unwrap();
        assert!(!outcome.success);
        assert!(outcome.lines.contains(&"a".to_owned()) && outcome.lines.contains(&"b".to_owned()));

        let outcome = tee(&mut sh("sleep 60; true"), Duration::from_millis(100)).unwrap();
        assert!(!outcome.success);
        assert_eq!(outcome.note.as_deref(), Some("ended after 0 s"));
    }

    #[test]
    fn a_service_is_watched_and_stopped() {
        let mut service = Service::start("svc", &mut sh("echo ready; exec sleep 60"), &dir()).unwrap();
        let found = |lines: &[String]| lines.iter().find(|line| *line == "ready").cloned();
        service
            .wait_lines("ready", Duration::from_secs(10), found)
            .unwrap();
        assert!(service.is_running());
        assert!(service.pid() > 1);
        service.stop(Duration::from_secs(5)).unwrap();
        assert!(!service.is_running());
    }

    #[test]
    fn a_service_that_dies_says_why() {
        let mut service = Service::start("dies", &mut sh("echo no port >&2; exit 1"), &dir()).unwrap();
        let error = service
            .wait_lines("ready", Duration::from_secs(10), |_| None::<()>)
            .unwrap_err();
        assert!(error.to_string().contains("no port"), "{error}");
    }

    #[test]
    fn shows_a_command_as_typed() {
        assert_eq!(shown(&sh("exit 1")), "sh -c 'exit 1'");
    }
}

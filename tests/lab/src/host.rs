//! A running host: how it starts, what a test can ask of it, how it ends.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::system::sethostname;
use rustix::thread::UnshareFlags;

use crate::files;
use crate::image;
use crate::mirror::{self, Mirror};
use crate::namespaces::{self, Namespaces, start_afresh};
use crate::root;
use crate::run::Run;
use crate::rundir::RunDir;
use crate::setup::{PASSWORD_HASH, Setup, User};
use crate::syslog::Syslog;
use crate::world;

/// How long a host may take for what it does in milliseconds.
const SOON: Duration = Duration::from_secs(10);

/// PID 1 mounts what only it can, and then reaps: `wait` takes in whoever died without a parent. It ends, and
/// the host with it, when its standard input does: so a killed test process takes its hosts along.
const PID_1: &str = r#"
    set -e
    mount -t proc -o nosuid,nodev,noexec proc /proc
    ip link set lo up
    echo up
    exec 3<&0
    cat <&3 >/dev/null &
    wait $!
"#;

/// A host that runs, until it is dropped. Made by [`crate::host()`].
pub struct Host {
    // In the order in which they end: the log's thread, the processes, the directory below them.
    log: Syslog,
    inside: Namespaces,
    pid_1: Pid1,
    run: RunDir,
    world: Option<Box<Self>>,
}

impl Host {
    pub(crate) fn start(setup: &Setup) -> Self {
        let mut host = Self::furnished(setup, setup.tree);
        if setup.network {
            host.world = Some(Box::new(world::around(&host)));
        }
        host.start_sshd();
        host
    }

    /// With everything that was asked for, but nothing that runs.
    pub(crate) fn furnished(setup: &Setup, tree: &str) -> Self {
        let tree = image::tree(tree);
        let run = RunDir::new();
        let pid_1 = Pid1::spawn(setup, &tree, &run);
        let inside = Namespaces::of(&pid_1.child);
        let log = Syslog::listen(&inside);
        let host = Self { log, inside, pid_1, run, world: None };

        for user in &setup.users {
            host.add_user(user);
        }
        if setup.ojail {
            host.install_ojail();
        }
        // After the installation, whose own files they may replace.
        for file in &setup.files {
            host.write(&file.path, file.mode, &file.text);
        }
        for (service, line) in &setup.pam {
            host.append_to_pam(service, line);
        }
        host.write("/etc/ssh/sshd_config.d/lab.conf", 0o644, &setup.sshd_config);
        host
    }

    /// A shell command, run by root.
    pub fn root(&self, command: &str) -> Run<'_> {
        self.exec(["/bin/sh", "-c", command, "sh"])
    }

    /// A program with its arguments, run by root, with no shell between.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Run<'_> {
        Run::new(&self.inside, words)
    }

    /// A shell command of root's in the world around a host with a network.
    #[track_caller]
    pub fn world(&self, command: &str) -> Run<'_> {
        let world = self.world.as_ref().expect("this host has no network; ask for one with Setup::network");
        world.root(command)
    }

    /// Starts servers on this host, as the world has them: `dns@127.0.0.53`, `http@…` (80), `echo@…` (7; any of
    /// them with `#port`), and what DNS is to know: `name=address`. They listen when this returns, and end with the host.
    #[track_caller]
    pub fn serve(&self, what: &[&str]) {
        world::serve(self, what);
    }

    /// Serves a mirror of a few Debian packages on the host's loopback, see [`crate::mirror`].
    #[track_caller]
    pub fn mirror(&self) -> Mirror {
        mirror::serve(self)
    }

    /// OpenSSH's client, from this host to its own sshd; [`Run::arg`] adds options. An empty command asks for a
    /// login shell.
    ///
    /// The client's options (key, no questions) are in root's `~/.ssh/config`, so `host.root("rsync …
    /// alice@127.0.0.1:")` works just as well.
    pub fn ssh(&self, user: &str, command: &str) -> Run<'_> {
        let command = (!command.is_empty()).then_some(command);
        self.exec(["ssh"]).then([&*at_home(user)]).then(command)
    }

    /// Dropbear's client, the same way.
    pub fn dbclient(&self, user: &str, command: &str) -> Run<'_> {
        let command = (!command.is_empty()).then_some(command);
        self.exec(["dbclient", "-y", "-y", "-i", "/root/.ssh/id_dropbear"])
            .then([&*at_home(user)])
            .then(command)
    }

    /// `scp`, where `alice:path` is a path of alice's on this host. [`Run::arg`] adds options.
    pub fn scp(&self, from: &str, to: &str) -> Run<'_> {
        let place = |path: &str| match path.split_once(':') {
            Some((user, path)) => format!("{}:{path}", at_home(user)),
            None => path.to_owned(),
        };
        self.exec(["scp", "-q"]).then([place(from), place(to)])
    }

    /// `sftp` with a batch of commands, a line each.
    pub fn sftp(&self, user: &str, batch: &str) -> Run<'_> {
        self.exec(["sftp", "-q", "-b", "-"]).then([at_home(user)]).stdin(batch)
    }

    /// What came to `/dev/log` so far, a line each, without syslog's priority number.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// The first line of the log that has this text, waited for if need be.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        match self.log.wait_for(text, SOON) {
            Some(line) => line,
            None => panic!("{text:?} did not come to the log:\n{}", self.log().join("\n")),
        }
    }

    /// A path of the host, as seen from the test. It leads through `/proc`, so absolute links on the way
    /// would lead to the machine's files.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let below = path.strip_prefix("/").unwrap_or_else(|_| panic!("{} is not absolute", path.display()));
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(below)
    }

    /// Writes a file of root's, with the directories above it.
    pub fn write(&self, path: impl AsRef<Path>, mode: u32, text: &str) {
        let path = self.path(path);
        files::make_directory(path.parent().expect("a file has a directory"));
        files::write(&path, text);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a file just written is ours");
    }

    /// The host's mount table, as `/proc/self/mountinfo` shows it.
    pub fn mountinfo(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).expect("the host's PID 1 is alive")
    }

    /// The host's PID 1, as the machine numbers it.
    pub fn pid(&self) -> u32 {
        self.pid_1.child.id()
    }

    /// Where the host's own files are, as the machine names it.
    pub(crate) fn directory(&self) -> &Path {
        self.run.path()
    }

    /// See [`Namespaces::enter_beside`].
    pub(crate) fn beside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.inside.enter_beside(act)
    }

    /// Runs Rust code inside: files, network and host name are the host's. Not what `/proc/self` says.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.inside.enter(act)
    }

    fn add_user(&self, user: &User) {
        for group in &user.groups {
            self.exec(["groupadd", "-f", group]).ok();
        }
        let uid = user.uid.map(|uid| format!("--uid={uid}"));
        let groups = user.groups.join(",");
        self.exec([
            "useradd",
            "--create-home",
            "--password",
            PASSWORD_HASH,
            "--shell",
            &user.shell,
            "--groups",
            &groups,
        ])
        .then(uid)
        .then([&user.name])
        .ok();

        let home = self.path("/home").join(&user.name);
        let ssh = home.join(".ssh");
        let keys = ssh.join("authorized_keys");
        files::make_directory(&ssh);
        fs::copy(self.path("/root/.ssh/id_ed25519.pub"), &keys).expect("root has a key");
        let owner = fs::metadata(&home).expect("useradd made a home");
        for (path, mode) in [(&ssh, 0o700), (&keys, 0o600)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("a file just made is ours");
            chown(path, Some(owner.uid()), Some(owner.gid())).expect("root may give files away");
        }
    }

    /// By the project's own `make install`, which only copies what `make build` made.
    fn install_ojail(&self) {
        let workspace = files::workspace();
        let makefile = fs::read_to_string(workspace.join("Makefile")).unwrap_or_default();
        if !makefile.lines().any(|line| line.starts_with("install:")) {
            return;
        }
        let output = Command::new("make")
            .args(["--silent", "install", "PREFIX=/usr"])
            .arg(format!("DESTDIR={}", self.path("/").display()))
            .current_dir(workspace)
            // The tests may be run by make themselves.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .output()
            .expect("make can be run; see tests/lab/install-needs");
        assert!(output.status.success(), "make install: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn append_to_pam(&self, service: &str, line: &str) {
        let path = Path::new("/etc/pam.d").join(service);
        // Debian's own may be in the vendor's place, which a file in /etc replaces as a whole.
        let vendor = Path::new("/usr/lib/pam.d").join(service);
        let found = [&path, &vendor].into_iter().find_map(|path| fs::read_to_string(self.path(path)).ok());
        let mut lines = found.unwrap_or_else(|| {
            ["auth", "account", "password", "session"]
                .map(|kind| format!("{kind} required pam_permit.so\n"))
                .concat()
        });
        lines.push_str(line);
        lines.push('\n');
        self.write(path, 0o644, &lines);
    }

    fn start_sshd(&self) {
        self.exec(["/usr/sbin/sshd"]).ok();
        // Written as soon as it listens.
        let started = self.path("/run/sshd.pid");
        let since = Instant::now();
        while !started.exists() {
            assert!(since.elapsed() < SOON, "sshd does not listen:\n{}", self.log().join("\n"));
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A user at this host, for any SSH client.
fn at_home(user: &str) -> String {
    format!("{user}@127.0.0.1")
}

/// PID 1 of a host. All processes of the host end with it.
struct Pid1 {
    child: Child,
}

impl Pid1 {
    fn spawn(setup: &Setup, tree: &Path, run: &RunDir) -> Self {
        let words = run.path().join("pid-1.log");
        let errors = File::create(&words).expect("the host's directory is ours");
        let others = UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWNET;
        let child = namespaces::in_new(others, || {
            sethostname(b"lab").expect("a new UTS namespace takes a name");
            root::raise(setup, tree, run);
            namespaces::next_is_pid_1();
            start_afresh(&mut Command::new("/bin/sh"))
                .args(["-c", PID_1])
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
                .expect("the host's tree has a shell")
        });
        let mut pid_1 = Self { child };
        let mut line = String::new();
        let stdout = pid_1.child.stdout.take().expect("it was asked for");
        let _ = BufReader::new(stdout).read_line(&mut line);
        if line != "up\n" {
            panic!("the host did not start: {}", fs::read_to_string(words).unwrap_or_default());
        }
        pid_1
    }
}

impl Drop for Pid1 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Returns when every process of the host has gone.
        let _ = self.child.wait();
    }
}

//! A whole machine, emulated: Debian's own kernel, systemd as PID 1, logind, cgroups, disks with quotas.
//!
//! For what a [`Host`] cannot show, since it borrows the kernel and has no init. It is furnished by the very same
//! code: a host is made of the machine's tree, its changes are put on a disk, and the machine takes them over when
//! it boots. From then on that host is the computer on the other side of the cable: QEMU runs in its network and PID
//! namespaces, so that the machine's ports are nobody else's, and its SSH client is where logins come from. QEMU
//! ends with the host, and the host with the test process.
//!
//! Emulation in software, never KVM: it works everywhere, and nested KVM is slower.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::image;
use crate::namespaces::start_afresh;
use crate::run::Run;
use crate::rundir::RunDir;
use crate::setup::Setup;

pub(crate) const EMULATOR: &str = "qemu-system-x86_64";

/// How long a boot may take. A tenth of it is usual.
const BOOT: Duration = Duration::from_secs(180);

/// How long a command may take, and what it does to the log, unless a test says otherwise.
const SOON: Duration = Duration::from_secs(120);

/// How much of the console explains a failure.
const SHOWN_LINES: usize = 40;

/// An old one, which the emulation knows by heart: newer instructions cost, and some of Debian 12's QEMU are wrong.
const CPU: &str = "Nehalem,+rdrand";

/// The machine reaches nothing but whoever connects to it: not even what QEMU's network has around it.
const NETWORK: &str =
    "user,id=cable,restrict=on,hostfwd=tcp:127.0.0.1:22-:22,hostfwd=tcp:127.0.0.1:2022-:2022";

const KERNEL_COMMAND_LINE: &str = "root=/dev/nvme0n1 rootfstype=ext4 rw init=/usr/lib/lab/init console=ttyS0 \
                                   net.ifnames=0 mitigations=off cryptomgr.notests quiet systemd.show_status=auto";

/// What a machine is made of. The disk is `/srv/overlay`'s.
#[derive(Debug, Clone)]
pub struct Hardware {
    pub memory_mib: u32,
    pub cpus: u32,
    pub file_system: FileSystem,
    /// As `truncate -s` takes it.
    pub disk: String,
}

impl Default for Hardware {
    fn default() -> Self {
        Self { memory_mib: 1024, cpus: 2, file_system: FileSystem::Ext4, disk: "1G".into() }
    }
}

/// What `/srv/overlay` is. Project quotas are on in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A machine that runs, until it is dropped. Made by [`Setup::boot`].
pub struct Machine {
    // In the order in which they end.
    emulator: Emulator,
    client: Host,
    _disks: RunDir,
}

impl Machine {
    pub(crate) fn boot(mut setup: Setup) -> Self {
        let mut hardware = setup.hardware.clone();
        if let Some(size) = setup.small_disk.take() {
            hardware.disk = size;
        }
        let client = Host::furnished(&setup, "machine");
        let place = RunDir::new();
        let disks = disks(&setup, &hardware, &client, place.path());
        let emulator = Emulator::start(&hardware, &disks, &client, place.path());
        let mut machine = Self { emulator, client, _disks: place };
        machine.wait_until_up();
        machine
    }

    /// A shell command, run by the machine's root; [`Run::arg`] adds `$1` and so on. It comes by a way of its own:
    /// no PAM, no session of logind's, and no `sshd_config` of the test's.
    pub fn root(&self, command: &str) -> Run<'_> {
        // OpenSSH joins its arguments to one line for the login shell at the other end.
        let quoted = r#"exec ssh machine "exec /bin/sh -c ${*@Q}""#;
        self.client.exec(["bash", "-c", quoted, "bash", command, "sh"]).within(SOON)
    }

    /// OpenSSH's client on another computer; as [`Host::ssh`].
    pub fn ssh(&self, user: &str, command: &str) -> Run<'_> {
        self.client.ssh(user, command).within(SOON)
    }

    /// As [`Host::scp`]; files that are not a user's are the other computer's.
    pub fn scp(&self, from: &str, to: &str) -> Run<'_> {
        self.client.scp(from, to).within(SOON)
    }

    /// As [`Host::sftp`].
    pub fn sftp(&self, user: &str, batch: &str) -> Run<'_> {
        self.client.sftp(user, batch).within(SOON)
    }

    /// The other computer, whose `127.0.0.1:22` is the machine.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// Writes a file of root's, with the directories above it.
    pub fn write(&self, path: &str, mode: u32, text: &str) {
        let install = r#"install -D -m "$2" /dev/stdin "$1""#;
        self.root(install).arg(path).arg(format!("{mode:o}")).stdin(text).ok();
    }

    /// The journal since the boot, a line each: `sshd[7]: …`.
    pub fn log(&self) -> Vec<String> {
        let all = self.root("journalctl --boot --quiet --output short-monotonic --no-hostname").ok().stdout;
        all.lines().map(|line| line.split_once("] ").map_or(line, |(_, said)| said).to_owned()).collect()
    }

    /// The first line of the journal that has this text, waited for if need be.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        let since = Instant::now();
        loop {
            let log = self.log();
            if let Some(line) = log.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            assert!(since.elapsed() < SOON, "{text:?} did not come to the log:\n{}", log.join("\n"));
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the kernel and systemd said on the serial console.
    pub fn console(&self) -> String {
        self.emulator.console()
    }

    /// QEMU's process, as the computer that runs the tests numbers it.
    pub fn pid(&self) -> u32 {
        self.emulator.child.id()
    }

    /// Shuts down and boots again; at the return its sshd listens.
    #[track_caller]
    pub fn reboot(&mut self) {
        self.soon("systemctl reboot");
        self.wait_until_up();
    }

    /// As if the power had failed: nothing is ended, nothing is written that was not. Then boots again.
    #[track_caller]
    pub fn crash(&mut self) {
        self.soon("echo b > /proc/sysrq-trigger");
        self.wait_until_up();
    }

    /// Runs what ends the connection by which it is asked for.
    #[track_caller]
    fn soon(&self, command: &str) {
        self.root("(sleep 1; eval \"$1\") > /dev/null 2>&1 < /dev/null &").arg(command).ok();
    }

    #[track_caller]
    fn wait_until_up(&mut self) {
        let since = Instant::now();
        let up = loop {
            match self.emulator.says.get_mut().unwrap().recv_timeout(Duration::from_secs(1)) {
                Ok(line) => break line == "up",
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) if since.elapsed() > BOOT || self.emulator.panicked() => {
                    break false;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        assert!(
            up,
            "the machine is not up after {:?}: {}\n{}",
            since.elapsed(),
            if self.emulator.is_running() { "it still runs" } else { "QEMU has ended" },
            self.emulator.last_words()
        );
        // One connection for all that root does: a handshake takes long under emulation.
        let connect = "rm -f /run/machine.ssh; exec ssh -MNf machine > /dev/null 2>&1 < /dev/null";
        self.client.root(connect).within(SOON).ok();
    }
}

/// A machine that the tests of one program share, for a boot is dear. It runs from the first that asks to the end of the
/// program.
///
/// ```no_run
/// static MACHINE: lab::Shared = lab::Shared::new(|| lab::host().user("alice").boot());
/// MACHINE.get().ssh("alice", "true").ok();
/// ```
pub struct Shared {
    boot: fn() -> Machine,
    machine: Mutex<Option<Arc<Machine>>>,
}

/// Those to be ended, since a static is never dropped.
static SHARED: Mutex<Vec<&'static Shared>> = Mutex::new(Vec::new());

impl Shared {
    pub const fn new(boot: fn() -> Machine) -> Self {
        Self { boot, machine: Mutex::new(None) }
    }

    #[track_caller]
    pub fn get(&'static self) -> Arc<Machine> {
        let mut machine = self.machine.lock().expect("the machine boots, see the test that came first");
        let machine = machine.get_or_insert_with(|| {
            let machine = Arc::new((self.boot)());
            let mut all = SHARED.lock().unwrap();
            if all.is_empty() {
                // SAFETY: takes a function that lives as long as the program.
                unsafe { libc::atexit(end_shared) };
            }
            all.push(self);
            machine
        });
        Arc::clone(machine)
    }
}

extern "C" fn end_shared() {
    for shared in SHARED.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default() {
        drop(shared.machine.lock().ok().and_then(|mut machine| machine.take()));
    }
}

/// A disk of the machine's. The first of a list is the one that it boots from.
struct Disk {
    image: PathBuf,
    access: Access,
}

enum Access {
    /// Written to, and thrown away at the end.
    Own,
    /// From the cache. What is written to it goes elsewhere, and is thrown away.
    Scratch,
    /// From the cache.
    ReadOnly,
}

impl Disk {
    fn option(&self) -> String {
        // Nothing of it will be wanted after a crash of the computer that runs the tests.
        let how = match self.access {
            Access::Own => "cache=unsafe",
            Access::Scratch => "cache=unsafe,snapshot=on",
            Access::ReadOnly => "readonly=on",
        };
        // A comma in a value is doubled.
        format!("if=none,format=raw,file={},{how}", self.image.display().to_string().replace(',', ",,"))
    }
}

/// All disks. Kernels number those of one kind as they find them, so they go by their labels.
fn disks(setup: &Setup, hardware: &Hardware, client: &Host, place: &Path) -> Vec<Disk> {
    let mut fstab = format!("LABEL=storage /srv/overlay {} prjquota 0 0\n", hardware.file_system.name());
    let mut layers = Vec::new();
    for (name, _) in setup.layers.iter().filter(|(_, content)| content.is_dir()) {
        fstab.push_str(&format!("LABEL={name} /srv/overlay/lowerdirs/{name} ext4 ro 0 0\n"));
        layers.push(Disk { image: image::tree(&format!("{name}.ext4")), access: Access::ReadOnly });
    }
    client.write("/usr/lib/lab/fstab", 0o644, &fstab);

    let base = Disk { image: image::tree("machine.ext4"), access: Access::Scratch };
    // Of the client's root file system only what differs from the tree is in its directory.
    let changes = Disk { image: place.join("changes.ext4"), access: Access::Own };
    make_ext4(client.directory(), &changes.image, "1G", &["-L", "changes"]);
    let storage = Disk { image: place.join("storage"), access: Access::Own };
    match hardware.file_system {
        FileSystem::Ext4 => ext4_storage(setup, client, &storage.image, &hardware.disk),
        FileSystem::Xfs => xfs_storage(setup, client, &storage.image, &hardware.disk),
    }
    [base, changes, storage].into_iter().chain(layers).collect()
}

/// The client's own storage, which has mount points for the layers. Where a host shows an image, there is an empty file
/// below, as seen from here.
fn ext4_storage(setup: &Setup, client: &Host, image: &Path, size: &str) {
    let directory = client.directory().join("srv-overlay");
    for (name, content) in setup.layers.iter().filter(|(_, content)| content.is_file()) {
        let target = directory.join("lowerdirs").join(name);
        fs::copy(content, &target)
            .unwrap_or_else(|error| panic!("cannot copy the layer {name} to the disk: {error}"));
    }
    make_ext4(&directory, image, size, &["-L", "storage", "-O", "project,quota"]);
}

/// The same by the machine's own tools: the computer that runs the tests may have none for XFS.
fn xfs_storage(setup: &Setup, client: &Host, image: &Path, size: &str) {
    // In mkfs.xfs' language: name, kind and mode, owner; `$` closes a directory.
    let mut plan = String::from("/dev/null\n0 0\nd--755 0 0\nlowerdirs d--700 0 0\n");
    for (name, content) in &setup.layers {
        plan.push_str(&match content.is_dir() {
            true => format!("{name} d--755 0 0\n$\n"),
            false => format!("{name} ---644 0 0 /srv/overlay/lowerdirs/{name}\n"),
        });
    }
    plan.push_str("$\n$\n");
    let made = client.directory().join("var-lib-ojail/storage");
    client.write("/tmp/plan", 0o600, &plan);
    let make =
        r#"cd /var/lib/ojail && truncate -s "$1" storage && mkfs.xfs -q -L storage -p /tmp/plan storage"#;
    client.root(make).arg(size).ok();
    fs::rename(made, image).expect("both are in the directory of the hosts");
}

fn make_ext4(content: &Path, image: &Path, size: &str, options: &[&str]) {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .args(options)
        .arg("-d")
        .args([content, image])
        .arg(size)
        .output()
        .unwrap_or_else(|error| panic!("cannot run mkfs.ext4: {error}; see tests/lab/install-needs"));
    assert!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
}

/// QEMU, which ends with this.
struct Emulator {
    child: Child,
    /// What the machine writes to its second serial port, a line each.
    says: Mutex<Receiver<String>>,
    console: PathBuf,
    /// What QEMU itself says.
    words: PathBuf,
}

impl Emulator {
    fn start(hardware: &Hardware, disks: &[Disk], client: &Host, place: &Path) -> Self {
        let console = place.join("console");
        let words = place.join("qemu.log");
        let mut command = Command::new(EMULATOR);
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
            .args(["-m", &hardware.memory_mib.to_string(), "-smp", &hardware.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-kernel")
            .arg(image::tree("machine").join("boot/vmlinuz"))
            .args(["-append", KERNEL_COMMAND_LINE])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .args(["-netdev", NETWORK, "-device", "virtio-net-pci,netdev=cable,romfile="]);
        for (number, disk) in disks.iter().enumerate() {
            // Only NVMe is built into the kernel.
            let device = if number == 0 { "nvme,serial=lab" } else { "virtio-blk-pci" };
            command.args(["-drive", &format!("id=disk{number},{}", disk.option())]);
            command.args(["-device", &format!("{device},drive=disk{number}")]);
        }
        start_afresh(&mut command)
            .env("TMPDIR", place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&words).expect("the machine's directory is ours"));
        let mut child = client
            .beside(|| command.spawn())
            .unwrap_or_else(|error| panic!("cannot run {EMULATOR}: {error}; see tests/lab/install-needs"));
        let lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        let (sender, says) = channel();
        // Ends with QEMU, or with whoever listens.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line.trim().to_owned()).is_err() {
                    return;
                }
            }
        });
        Self { child, says: Mutex::new(says), console, words }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn panicked(&self) -> bool {
        self.console().contains("Kernel panic")
    }

    fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let qemu = fs::read_to_string(&self.words).unwrap_or_default();
        format!("{qemu}--- console\n{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

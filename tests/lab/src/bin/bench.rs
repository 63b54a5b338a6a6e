//! `make bench`: what a jail costs, measured in one run on one throw-away host, as a table with ratios.
//!
//! Machines are noisy, so what is compared is run in turn, and medians and ratios of pairs are what counts. Nothing
//! is asserted: a slow machine is no failure.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use lab::{Host, Run, User};

const CONFIG: &str = r#"[profiles.debian]
layers = ["debian"]

[profiles.many]
layers = ["debian"]
home = "jail"

[[rules]]
user = "alice"
profile = "debian"
[[rules]]
group = "many"
profile = "many"
"#;

const PAIRS: usize = 60;
const WARM: usize = 300;
const COLD: usize = 60;
const RUNS: usize = 40;
const JAILS: u32 = 100;

fn main() -> ExitCode {
    if let Err(reason) = lab::must::root() {
        eprintln!("bench: {reason}; run `make bench` as root");
        return ExitCode::FAILURE;
    }
    let host = lab::host().user(User::new("alice")).layer("debian").config(CONFIG).pam("sshd").start();
    let timing = std::env::current_exe().ok().map(|path| path.with_file_name("timing"));
    if timing.is_none_or(|path| fs::copy(path, host.path("/usr/sbin/timing")).is_err()) {
        eprintln!("bench: the program `timing` is not beside this one; `make bench` builds both");
        return ExitCode::FAILURE;
    }
    machine();
    ssh(&host);
    module(&host);
    peers(&host);
    memory(&host);
    ExitCode::SUCCESS
}

fn machine() {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("Kernel {}, {cores} cores.\n", kernel.trim());
    println!("{:<44} {:>10} {:>10} {:>10}", "", "median", "min", "max");
}

/// Samples of one thing, in milliseconds.
struct Samples(Vec<f64>);

impl Samples {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn row(&self, name: &str, unit: &str) {
        let (min, max) = (self.0[0], self.0[self.0.len() - 1]);
        println!("{name:<44} {:>7.3} {unit:<2} {min:>7.3} {unit:<2} {max:>7.3} {unit}", self.median());
    }
}

fn took(run: Run<'_>) -> f64 {
    run.ok().took.as_secs_f64() * 1000.0
}

/// A login that runs `true`, with and without a jail, in turn; the jailed one also by way of `ojail-shell`.
///
/// By one user, who is exempt and jailed by turns: sshd waits some milliseconds at each login, and how many depends on
/// the user's name (`user_specific_delay` in its auth2.c).
fn ssh(host: &Host) {
    let exempt = CONFIG.replace("user = \"alice\"\nprofile = \"debian\"", "user = \"alice\"\nexempt = true");
    let login = |config: &str, shell: &str| {
        host.write("/etc/ojail/ojail.toml", 0o644, config);
        host.root(&format!("sed -i 's#^\\(alice:.*:\\).*#\\1{shell}#' /etc/passwd")).ok();
        took(host.ssh("alice", "true"))
    };
    let ways: [&dyn Fn() -> f64; 3] =
        [&|| login(&exempt, "/bin/bash"), &|| login(CONFIG, "/bin/bash"), &|| {
            login(CONFIG, "/usr/bin/ojail-shell")
        }];
    // Once each for nothing: the first raises the jail, and fills caches.
    for way in ways {
        way();
    }
    let mut took: [Vec<f64>; 3] = Default::default();
    for round in 0..PAIRS {
        // Each goes first as often as the others.
        for turn in 0..ways.len() {
            let number = (round + turn) % ways.len();
            took[number].push(ways[number]());
        }
    }
    let ratio = |number: usize| Samples::new(took[number].iter().zip(&took[0]).map(|(a, b)| a / b).collect());
    let ratios = [ratio(1), ratio(2)];
    let [plain, jailed, shell] = took;
    Samples::new(plain).row("SSH login, not jailed", "ms");
    Samples::new(jailed).row("SSH login, jailed (warm)", "ms");
    ratios[0].row("  ratio of pairs", "");
    Samples::new(shell).row("SSH login, jailed, by way of ojail-shell", "ms");
    ratios[1].row("  ratio of pairs", "");
}

/// The module's own time, by a program that does what it does.
fn module(host: &Host) {
    let micros = |script: String| -> Samples {
        let text = host.root(&script).within(Duration::from_secs(120)).text();
        Samples::new(text.lines().filter_map(|line| line.parse::<f64>().ok()).map(|us| us / 1000.0).collect())
    };
    let warm = micros(format!("for i in $(seq {WARM}); do timing alice; done"));
    let cold = micros(format!("for i in $(seq {COLD}); do ojail stop alice >/dev/null; timing alice; done"));
    println!();
    warm.row("module: join and confine, jail is up", "ms");
    cold.row("module: raise, join and confine", "ms");
    println!(
        "{:<44} {:>7.3} ms",
        "  of which raising (difference of medians)",
        cold.median() - warm.median()
    );
}

/// Other ways to run `true` in the same tree.
fn peers(host: &Host) {
    println!();
    let tree = "/srv/overlay/lowerdirs/debian";
    let bwrap = format!("bwrap --ro-bind {tree} / --dev /dev --proc /proc --unshare-all true");
    let unshare = format!("unshare --mount --pid --ipc --uts --fork chroot {tree} true");
    let chroot = format!("chroot {tree} true");
    let rows = [
        ("true, on the host", "true"),
        ("true, by chroot", chroot.as_str()),
        ("true, by unshare and chroot", unshare.as_str()),
        ("true, by bubblewrap", bwrap.as_str()),
        ("true, by ojail enter (warm)", "ojail enter alice -- true"),
    ];
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    for _ in 0..RUNS {
        for (samples, (_, command)) in samples.iter_mut().zip(&rows) {
            samples.push(took(host.exec(command.split(' '))));
        }
    }
    for (samples, (name, _)) in samples.into_iter().zip(&rows) {
        Samples::new(samples).row(name, "ms");
    }
}

/// What idle jails take, all in all and PID 1 alone, and what they add to the host's mount table.
fn memory(host: &Host) {
    let users: String =
        (0..JAILS).map(|i| format!("many{i}:x:{}:2000::/home/many{i}:/bin/bash\n", 3000 + i)).collect();
    host.root("printf 'many:x:2000:\\n' >> /etc/group; cat >> /etc/passwd").stdin(users).ok();
    // One before, so that nothing that is shared is counted.
    host.root("timing many0").ok();
    let mounts = host.mountinfo().lines().count();
    let before = available(host);
    host.root(&format!("for i in $(seq {}); do timing many$i; done", JAILS - 1))
        .within(Duration::from_secs(120))
        .ok();
    let after = available(host);
    let each = before.saturating_sub(after) / u64::from(JAILS - 1);
    let private = "pid=$(pgrep -n ojail-init); awk '/^Pss_Anon/ {print $2}' /proc/$pid/smaps_rollup";
    println!();
    println!("{:<44} {each:>7} KiB", format!("memory of an idle jail, of {}", JAILS - 1));
    println!("{:<44} {:>7} KiB", "  of which private to its PID 1", host.root(private).text());
    let added = host.mountinfo().lines().count() - mounts;
    println!("{:<44} {added:>7}", format!("lines in the host's mount table, for {}", JAILS - 1));
}

/// Memory that is available, in KiB, with caches dropped.
fn available(host: &Host) -> u64 {
    let script =
        "sync; echo 3 > /proc/sys/vm/drop_caches; sleep 1; awk '/^MemAvailable/ {print $2}' /proc/meminfo";
    host.root(script).text().parse().unwrap_or_default()
}

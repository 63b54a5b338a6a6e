//! `make demo`: what ojail is, shown over a real sshd in a throw-away host, and verified step by step.
//!
//! Every line that it prints was printed by the real thing. A step that does not show what it must ends the demo with
//! status 1. With a terminal the host stays up for a while, to be logged in to.

use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Host, Output, Run, User};

const CONFIG: &str = r#"[profiles.debian]
layers = ["debian"]

[profiles.nginx]
layers  = ["nginx", "debian"]  # topmost first
root    = true                 # sudo inside; nobody outside
network = "none"               # a loopback of its own, and nothing else

[[rules]]
user = ["nginx1", "nginx2"]
profile = "nginx"

[[rules]]
group = "jailed"
profile = "debian"
"#;

fn main() -> ExitCode {
    if let Err(reason) = lab::must::root() {
        eprintln!("demo: {reason}; run `make demo` as root");
        return ExitCode::FAILURE;
    }
    let mut demo = Demo { bold: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(), step: 0 };
    for tree in ["builder", "mirror"] {
        waiting(tree);
    }
    let since = Instant::now();
    let host = lab::host()
        .user(User::new("nginx1").shell("/usr/bin/ojail-shell"))
        .user(User::new("nginx2").shell("/usr/bin/ojail-shell"))
        .user(User::new("debian1").shell("/usr/bin/ojail-shell").groups(["jailed"]))
        .builder()
        .config(CONFIG)
        .pam("sshd")
        .pam("su")
        .pam("login")
        .pam("cron")
        .start();
    host.root("add-shell /usr/bin/ojail-shell").ok();
    println!("A throw-away host with a stock sshd is up after {} ms.", since.elapsed().as_millis());

    if let Err(why) = demo.show(&host) {
        eprintln!("\ndemo: {why}");
        return ExitCode::FAILURE;
    }
    if stdin().is_terminal() && stdout().is_terminal() {
        demo.title("The host stays up. Log in from another terminal, as root of this machine:");
        for user in ["nginx1", "nginx2", "debian1"] {
            println!("  nsenter -at {} ssh {user}@127.0.0.1", host.pid());
        }
        println!("\nIts administrator: nsenter -at {} bash", host.pid());
        print!("\nEnter ends it. ");
        let _ = stdout().flush();
        let _ = stdin().read_line(&mut String::new());
    }
    let remains = [Some(PathBuf::from(format!("/proc/{}", host.pid()))), directory(&host)];
    drop(host);
    if let Some(left) = remains.iter().find(|path| path.as_ref().is_none_or(|path| path.exists())) {
        eprintln!("\ndemo: the host is gone, but not all of it: {left:?}");
        return ExitCode::FAILURE;
    }
    println!("\nThe host is gone, and nothing of it is left.");
    ExitCode::SUCCESS
}

/// Where the host's files are on the machine, as its mount table tells: above the upper of its root.
fn directory(host: &Host) -> Option<PathBuf> {
    let table = host.mountinfo();
    let upper = table.lines().find(|line| line.split(' ').nth(4) == Some("/"))?.split_once("upperdir=")?.1;
    Some(Path::new(upper.split(',').next()?).parent()?.to_owned())
}

/// Builds a tree, with a clock on a terminal: the first time takes half a minute.
fn waiting(name: &str) {
    let clock = stdout().is_terminal();
    thread::scope(|scope| {
        let builder = scope.spawn(|| lab::image::tree(name));
        let since = Instant::now();
        while !builder.is_finished() {
            thread::sleep(Duration::from_millis(100));
            if clock && since.elapsed() > Duration::from_secs(1) {
                print!("\r  {name}: {} s ", since.elapsed().as_secs());
                let _ = stdout().flush();
            }
        }
        if clock {
            print!("\r\x1b[K");
            // The next thing said goes to standard error, which does not wait for this.
            let _ = stdout().flush();
        }
    });
}

/// How long a step may take: some install packages, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(600);

/// What a step must print, for the sentence when it does not; and whether it did.
type Must<'a> = (&'a str, bool);

struct Demo {
    bold: bool,
    step: u32,
}

impl Demo {
    fn show(&mut self, host: &Host) -> Result<(), String> {
        self.layers(host)?;
        self.title("Three users, two profiles, one copy of each layer");
        self.root(host, "cat /etc/ojail/ojail.toml", |text| {
            ("the configuration", format!("{text}\n") == CONFIG)
        })?;
        self.root(host, "ojail check", |text| ("\"All is well.\"", text.ends_with("All is well.")))?;

        self.title("Each lands in a Debian of their own; two have nginx in theirs");
        let list = "dpkg -l nginx-light | tail -1";
        self.ssh(host, "nginx1", list, |text| {
            ("nginx-light, installed", text.starts_with("ii  nginx-light"))
        })?;
        self.ssh(host, "nginx2", list, |text| {
            ("nginx-light, installed", text.starts_with("ii  nginx-light"))
        })?;
        self.ssh(host, "debian1", "command -v nginx || echo no nginx here", |text| {
            ("\"no nginx here\"", text == "no nginx here")
        })?;
        // Whoever is not in a jail sees sh or systemd there, and the ojail-init of others at higher numbers.
        self.ssh(host, "debian1", "id; ps ax", |text| {
            let pid_1 = text.lines().find(|line| line.trim_start().starts_with("1 "));
            ("ojail-init as PID 1", pid_1.is_some_and(|line| line.contains("/ojail-init")))
        })?;

        self.title("nginx1 replaces a page; nginx2 does not see it");
        let page = "/var/www/html/index.nginx-debian.html";
        self.ssh(host, "nginx1", &format!("echo Hello from nginx1 | sudo tee {page}"), |text| {
            ("\"Hello from nginx1\"", text == "Hello from nginx1")
        })?;
        self.ssh(host, "nginx2", &format!("grep title {page}"), |text| {
            ("the title of the layer's page", text.contains("Welcome to nginx"))
        })?;

        self.title("Only the change takes space");
        let files = "find /srv/overlay/upperdirs -type f";
        self.root(host, files, |text| {
            ("the one file that was written", text == format!("/srv/overlay/upperdirs/nginx1{page}"))
        })?;
        let users = ["debian1", "nginx1", "nginx2"];
        self.root(host, "ojail usage", |text| ("three users", users.iter().all(|user| text.contains(user))))?;

        self.title("A deletion is a whiteout in the upper; the layer keeps the file");
        self.ssh(host, "nginx2", &format!("sudo rm {page}; test -e {page} || echo gone"), |text| {
            ("\"gone\"", text == "gone")
        })?;
        self.root(host, &format!("ls -l /srv/overlay/upperdirs/nginx2{page}"), |text| {
            ("a whiteout: a device 0, 0", text.starts_with('c') && text.contains(" 0, 0 "))
        })?;

        self.title("sftp, and a port forwarded into the jail");
        let sftp = Self::run(host.sftp("debian1", "put /etc/hostname notes\nls -l notes\n"))?;
        self.print("$ sftp debian1@127.0.0.1", &sftp, &sftp.text());
        let listed = |line: &str| line.starts_with("-rw") && line.ends_with(" notes");
        must(("the file that was put", sftp.text().lines().any(listed)))?;
        self.ssh(host, "nginx1", "sudo nginx && echo nginx is up", |text| {
            ("\"nginx is up\"", text == "nginx is up")
        })?;
        let mut tunnel = host.ssh("nginx1", "").arg("-N").arg("-L8081:127.0.0.1:80").spawn();
        Self::run(
            host.root("for i in $(seq 100); do nc -z 127.0.0.1 8081 && exit; sleep 0.1; done; exit 1"),
        )?;
        self.command("$ ssh -N -L 8081:127.0.0.1:80 nginx1@127.0.0.1 &");
        // The host has no curl.
        let get = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -q 2 127.0.0.1 8081 | tail -1";
        let got = Self::run(host.root(get))?;
        self.print(&format!("$ {get}"), &got, &got.text());
        must(("nginx1's page", got.text() == "Hello from nginx1"))?;

        self.title("What the administrator sees");
        self.root(host, "ojail list", |text| {
            let running = |user: &str| {
                text.lines().any(|line| {
                    let mut words = line.split_whitespace();
                    (words.next(), words.nth(1)) == (Some(user), Some("running"))
                })
            };
            ("three running jails", users.into_iter().all(running))
        })?;
        must(("an open tunnel", tunnel.is_running()))?;
        tunnel.kill();
        host.root("until ojail status nginx1 --json | grep -q '\"sessions\":\\[\\]'; do sleep 0.05; done")
            .ok();

        self.title("Back to the layers, on demand: the jail ends, and the changes are set aside");
        self.root(host, "ojail-shell --reset nginx1", |text| {
            ("that the changes are set aside", text.contains("set aside"))
        })?;
        self.ssh(host, "nginx1", &format!("grep title {page}"), |text| {
            ("the title of the layer's page", text.contains("Welcome to nginx"))
        })?;
        self.root(host, "find /srv/overlay/upperdirs/nginx1 -type f | wc -l", |text| {
            ("an upper without files", text == "0")
        })?;

        self.title("Packed into images, the layers take less still");
        let pack = "ojail layer pack debian && ojail layer pack nginx";
        self.root(host, pack, |text| ("that both are packed", text.matches(" is packed as ").count() == 2))?;
        self.root(host, "ojail usage", |text| {
            ("three sums", text.lines().take(4).all(|line| !line.contains("not known")))
        })?;
        sums(host)?;
        self.ssh(host, "nginx1", list, |text| {
            ("nginx-light, installed", text.starts_with("ii  nginx-light"))
        })?;

        self.title("What the log says");
        let log: Vec<String> = host.log().into_iter().filter(|line| line.contains("event=")).collect();
        for line in log.iter().filter(|line| line.contains("nginx1")) {
            println!("  {line}");
        }
        must(("a reset of nginx1's", log.iter().any(|line| line.contains("event=reset user=nginx1"))))
    }

    /// A Debian, and what nginx adds to one.
    fn layers(&mut self, host: &Host) -> Result<(), String> {
        self.title("Two layers: a Debian, and nginx on top of it");
        // The host is on no network. Elsewhere `ojail layer build debian` alone would do.
        let mirror = host.mirror();
        let is_now = |text: &str, name: &str| text.starts_with(&format!("{name} is {name}@"));
        let build = format!("ojail layer build debian --mirror '{}'", mirror.line());
        self.root(host, &build, |text| ("that there is a layer debian", is_now(text, "debian")))?;
        let install = "apt-get update && apt-get install -y --no-install-recommends nginx-light";
        let derive = format!("ojail layer derive nginx --from debian -- sh -c '{install}'");
        self.root(host, &derive, |text| ("that there is a layer nginx", is_now(text, "nginx")))?;
        self.root(host, "ojail layer list", |text| ("a head and two layers", text.lines().count() == 3))
    }

    fn title(&mut self, text: &str) {
        self.step += 1;
        if self.bold {
            println!("\n\x1b[1m{}. {text}\x1b[0m", self.step);
        } else {
            println!("\n{}. {text}", self.step);
        }
    }

    fn ssh<'a>(
        &self,
        host: &Host,
        user: &str,
        command: &str,
        right: impl FnOnce(&str) -> Must<'a>,
    ) -> Result<(), String> {
        let output = Self::run(host.ssh(user, command))?;
        self.print(&format!("$ ssh {user}@127.0.0.1 '{command}'"), &output, &output.text());
        must(right(&output.text()))
    }

    fn root<'a>(
        &self,
        host: &Host,
        command: &str,
        right: impl FnOnce(&str) -> Must<'a>,
    ) -> Result<(), String> {
        // Some build a whole Debian.
        let output = Self::run(host.root(command).within(LONG))?;
        self.print(&format!("# {command}"), &output, output.stdout.trim_end());
        must(right(&output.text()))
    }

    fn run(run: Run<'_>) -> Result<Output, String> {
        let output = run.run();
        if output.status.success() { Ok(output) } else { Err(format!("this should have worked: {output}")) }
    }

    fn command(&self, command: &str) {
        if self.bold {
            println!("\n  \x1b[36m{command}\x1b[0m");
        } else {
            println!("\n  {command}");
        }
    }

    fn print(&self, command: &str, output: &Output, text: &str) {
        self.command(command);
        for line in text.lines().chain(output.stderr.lines()) {
            println!("  {line}");
        }
    }
}

fn must((what, holds): Must<'_>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("expected {what}, and the above is something else")) }
}

/// The same jails as three trees, on shared layers, and on packed ones: less each time.
fn sums(host: &Host) -> Result<(), String> {
    let text = Demo::run(host.root("ojail usage --json"))?.text();
    let told: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("ojail usage --json: {error}: {text}"))?;
    let sums = ["one_by_one", "shared", "packed"].map(|sum| told[sum].as_u64());
    must((
        "each sum to be less than the one before",
        sums[0] > sums[1] && sums[1] > sums[2] && sums[2].is_some(),
    ))
}

//! `ojail top` on a terminal, and what it leaves of that.

use lab::{Host, Running};

use crate::common::{SOON, host, until};

const SCREEN: (&str, &str) = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l");

/// A terminal of the host's in which this runs between two looks at its settings.
fn terminal<'h>(host: &'h Host, command: &str) -> Running<'h> {
    let script = format!(
        "trap : INT QUIT; stty rows 12 cols 90; stty -g > /root/before; tty > /root/tty; {command}; echo status=$?; stty -g > /root/after; echo over"
    );
    host.exec(["script", "-qec", &script, "/dev/null"]).spawn()
}

#[track_caller]
fn is_as_before(host: &Host, said: &str) {
    assert_eq!(host.root("cat /root/before").text(), host.root("cat /root/after").text(), "{said:?}");
    let (enter, leave) = (said.matches(SCREEN.0).count(), said.matches(SCREEN.1).count());
    assert!(enter > 0 && enter == leave, "{enter} times in, {leave} times back: {said:?}");
    let after = said.rsplit(SCREEN.1).next().unwrap();
    assert!(!after.contains('\x1b'), "something came after the way back: {after:?}");
}

#[test]
fn top_shows_the_jails_and_gives_the_terminal_back_whatever_ends_it() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "echo inside; sleep 300").spawn();
    session.wait_for("inside");
    for end in ["q", "\x03", "\x1c", "TERM", "HUP"] {
        let mut top = terminal(&host, "ojail top --every 1s");
        let said = top.wait_for("alice  debian");
        assert!(said.contains("sessions 1") && said.contains("q quit"), "{said:?}");
        if end.len() == 1 {
            top.write(end);
        } else {
            host.root(&format!("pkill -{end} -x ojail")).ok();
        }
        let said = top.wait_for("over");
        assert!(said.contains("status=0"), "{end:?}: {said:?}");
        is_as_before(&host, &said);
        top.finish();
    }
}

#[test]
fn top_takes_keys_and_the_size_of_the_terminal() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "true").ok();
    let mut top = terminal(&host, "ojail top --every 1h");
    top.wait_for("by cpu, every 3600 s");
    top.write("m");
    top.wait_for("by memory");
    top.write("xu");
    top.wait_for("by user");
    // Long before the next look, and no line longer than the terminal is wide.
    host.root("stty -F $(cat /root/tty) rows 4 cols 20").ok();
    until("it is drawn anew", SOON, || {
        let said = top.wait_for("");
        let last = said.rsplit("\x1b[2J").next().unwrap();
        let lines: Vec<&str> = last.split("\x1b[K").skip(1).collect();
        let width = |line: &&str| line.split('\x1b').next().unwrap().chars().count();
        said.matches("\x1b[2J").count() > 1 && lines.len() == 4 && lines.iter().all(|line| width(line) <= 20)
    });
    top.write("q");
    is_as_before(&host, &top.wait_for("over"));
}

#[test]
fn top_gives_the_terminal_back_while_it_is_suspended() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "true").ok();
    let mut shell = host.exec(["script", "-qec", "PS1= bash --norc --noprofile -i", "/dev/null"]).spawn();
    shell.write("stty -g > /root/before; ojail top --every 1s\n");
    shell.wait_for("alice  debian");
    shell.write("\x1a");
    shell.wait_for("Stopped");
    shell.write("stty -g > /root/between; echo bet$((1+1))ween\n");
    shell.wait_for("bet2ween");
    // bash changes the settings for itself, and gives commands those that it found.
    assert_eq!(host.root("cat /root/before").text(), host.root("cat /root/between").text());
    shell.write("fg\n");
    until("it draws again", SOON, || shell.wait_for("").matches(SCREEN.0).count() == 2);
    shell.write("q");
    until("it is back", SOON, || shell.wait_for("").matches(SCREEN.1).count() == 2);
    shell.write("stty -g > /root/after; echo ov$((1+1))er\n");
    let said = shell.wait_for("ov2er");
    assert_eq!(host.root("cat /root/before").text(), host.root("cat /root/after").text(), "{said:?}");
    shell.write("exit\n");
    shell.finish();
}

#[test]
fn top_is_not_held_by_a_terminal_that_is_stopped_and_ends_with_one_that_is_gone() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "true").ok();
    let runs = || host.root("pgrep -x ojail").run().code() == Some(0);
    let mut stopped = terminal(&host, "stty ixon; ojail top --every 1s");
    stopped.wait_for("alice  debian");
    stopped.write("\x13");
    host.root("sleep 3; pkill -TERM -x ojail").ok();
    until("a stopped terminal holds it not", SOON, || !runs());
    stopped.write("\x11");
    stopped.wait_for("over");
    stopped.finish();

    let gone = terminal(&host, "ojail top --every 1s");
    gone.wait_for("alice  debian");
    gone.kill();
    until("it ends with its terminal", SOON, || !runs());
}

#[test]
fn top_refuses_what_is_no_terminal_and_what_is_no_time() {
    lab::require_root!();
    let host = host("");
    let output = host.root("ojail top").fails();
    assert_eq!(output.code(), Some(1));
    assert_eq!(
        output.stderr,
        "ojail: `ojail top` draws on a terminal, and standard output is none; `ojail list` prints\n"
    );
    assert_eq!(output.stdout, "");
    let output = host.root("ojail top --every 0s").fails();
    assert!(output.code() == Some(2) && output.stderr.contains("from 1s to 1h"), "{output}");
    assert_eq!(host.root("ojail top --json").fails().code(), Some(2));
}
